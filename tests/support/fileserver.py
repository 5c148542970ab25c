"""A file server that lists its folders, as nginx and Python's own do."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Files:
    """The folder that is served, the paths that were asked for, and those of graphs that were downloaded. With `lists`
    false it lists no folder."""

    folder: Path
    port: int = 0
    lists: bool = True
    asked: list[str] = field(default_factory=list)
    downloaded: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/models"


@contextlib.contextmanager
def serve_files(folder: Path) -> Iterator[Files]:
    """`folder`, which is created, is named `models`."""
    found = Files(folder / "models")
    found.folder.mkdir(parents=True)

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            found.asked.append(self.path)
            if self.command == "GET" and self.path.endswith(".onnx"):
                found.downloaded.append(self.path)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

        def list_directory(self, path: Any) -> Any:
            return super().list_directory(path) if found.lists else self.send_error(403)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
