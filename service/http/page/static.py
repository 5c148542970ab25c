"""The files of the page: its script, in modules, and its style. They hold no data, so they need no token."""

import hashlib
from functools import cache
from pathlib import Path

from starlette.responses import Response

import fold
from service.errors import NotFoundError, shown

FOLDER = Path(__file__).parent / "static"
LOOK = Path(fold.__file__).parent / "reports" / "templates" / "look.css"
"""The colours and the type of reports, and of this page. An import of `fold.reports` would load onnx."""
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
}
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox allow-same-origin"
)
"""Of every file, but it means something to frame.html alone, in which the page shows a report: no script runs there,
the report's own or another's, and nothing is loaded."""


def static_file(name: str, known: str) -> Response:
    """A file of the page; 304 if `known`, the header If-None-Match, names its content. Raises `NotFoundError`."""
    content, tag = _read(name)
    headers = {
        "etag": tag,
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "content-security-policy": POLICY,
    }
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[Path(name).suffix], headers=headers)


@cache
def _read(name: str) -> tuple[bytes, str]:
    """The content of a file and its entity tag."""
    files = {path.name: path for path in (*FOLDER.iterdir(), LOOK) if path.suffix in TYPES}
    if name not in files:
        raise NotFoundError(f"the page has no file {shown(name)}")
    content = files[name].read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
