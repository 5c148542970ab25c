"""The demo's own parts, against services of a few lines; `make demo` itself runs the real one."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models import demo, digits
from models.demo import DemoError, Trained
from models.digits import Digits
from models.mlp import mlp

SERVICE = """
import http.server, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def data() -> Digits:
    digits_ = digits.load()
    return Digits(digits_.train_images, digits_.train_labels, digits_.test_images[:40], digits_.test_labels[:40])


@pytest.fixture
def trained(data: Digits, tmp_path: Path) -> Trained:
    torch.manual_seed(0)
    module = mlp(channels=8).eval()
    return Trained(tmp_path / "mlp.pt", module, digits.accuracy(module, data.test_images, data.test_labels))


@contextmanager
def answering(answer: Callable[[str, bytes], tuple[int, Any]]) -> Iterator[str]:
    """A service that answers each POST with what `answer` makes of its content type and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, content = answer(self.headers["Content-Type"], body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def logits_of(trained: Trained, body: bytes) -> torch.Tensor:
    instances = torch.tensor(json.loads(body)["instances"])
    with torch.no_grad():
        logits: torch.Tensor = trained.module(instances)
    return logits


def test_predictions_like_pytorchs_are_accepted(data: Digits, trained: Trained, tmp_path: Path) -> None:
    picture = tmp_path / "digit.png"

    def answer(content_type: str, body: bytes) -> tuple[int, Any]:
        if content_type == "image/png":
            assert body == picture.read_bytes()
            label = str(digits.predict(trained.module, data.test_images[:1])[0])
            return 200, {"predictions": [{"label": label, "probability": 0.5}]}
        logits = logits_of(trained, body)
        assert len(logits) <= demo.BATCH
        return 200, {"predictions": logits.tolist()}

    with answering(answer) as url:
        answers = demo.predict(url, data, trained, picture=picture)
    assert np.array_equal(answers.classes, digits.predict(trained.module, data.test_images))
    assert answers.probability == pytest.approx(0.5)


def test_one_image_of_another_class_ends_the_demo(data: Digits, trained: Trained, tmp_path: Path) -> None:
    left = [1]

    def answer(content_type: str, body: bytes) -> tuple[int, Any]:
        logits = logits_of(trained, body)
        if left:
            left.pop()
            logits[0] = -logits[0]
        return 200, {"predictions": logits.tolist()}

    with answering(answer) as url, pytest.raises(DemoError, match="differ for 1 of 40 images"):
        demo.predict(url, data, trained, picture=tmp_path / "digit.png")


def test_what_the_service_refuses_is_told_in_its_words(data: Digits, trained: Trained, tmp_path: Path) -> None:
    with (
        answering(lambda *_: (404, {"error": "no model digits"})) as url,
        pytest.raises(DemoError, match=r"404: .*no model digits"),
    ):
        demo.predict(url, data, trained, picture=tmp_path / "digit.png")


def test_a_negative_verdict_ends_the_demo() -> None:
    with (
        answering(lambda *_: (200, {"equivalent": False})) as url,
        pytest.raises(DemoError, match="does not serve the trained model"),
    ):
        demo.prove(url)


def test_the_picture_is_the_image(data: Digits, tmp_path: Path) -> None:
    file = tmp_path / "digit.png"
    file.write_bytes(demo._png(data.test_images[0]))
    with Image.open(file) as picture:
        assert (picture.mode, picture.size) == ("L", (8, 8))
        pixels = np.asarray(picture)
    assert np.abs(pixels / 255 - data.test_images[0, 0]).max() <= 0.5 / 255


def test_a_training_is_skipped_only_if_its_record_is_the_same(data: Digits, tmp_path: Path) -> None:
    file = tmp_path / "mlp.pt"
    record = digits.training_record("models.mlp:mlp", {}, data)
    assert demo._trained_before(file, record) is None
    module = mlp()
    digits.save(file, module, reached=0.99, record=record)
    state = demo._trained_before(file, record)
    assert state is not None
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert demo._trained_before(file, {**record, "seed": 1}) is None
    file.write_bytes(file.read_bytes()[:1000])
    assert demo._trained_before(file, record) is None


def test_a_service_is_waited_for_and_stopped(tmp_path: Path) -> None:
    with demo.served([sys.executable, "-c", SERVICE.format(code=0)], log=tmp_path / "log") as url:
        port = int(url.rpartition(":")[2])
    with pytest.raises(OSError, match="refused"):
        demo._opener.open(f"http://127.0.0.1:{port}", timeout=1)


def test_a_service_that_stops_badly_ends_the_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVICE.format(code=3)]
    with (
        pytest.raises(DemoError, match="exited with 3 after SIGTERM, expected 0"),
        demo.served(command, log=tmp_path / "log"),
    ):
        pass


def test_a_service_is_stopped_when_a_step_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import os; print(os.getpid(), flush=True){SERVICE.format(code=0)}"]
    with (
        pytest.raises(RuntimeError, match="a step failed"),
        demo.served(command, log=tmp_path / "log"),
    ):
        raise RuntimeError("a step failed")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "log").read_text().split()[0]), 0)


def test_a_service_that_dies_shows_its_last_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the port is taken')"]
    with (
        pytest.raises(DemoError, match="died with exit status 1"),
        demo.served(command, log=tmp_path / "log"),
    ):
        pass
    assert "the port is taken" in capsys.readouterr().out


def test_a_command_that_fails_ends_the_demo_with_its_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_bnfold", lambda *_: [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(DemoError, match="bnfold verify failed with exit status 2") as caught:
        demo.verify(Path("nowhere"))
    assert caught.value.code == 2


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "models.demo", "--out", str(tmp_path / "file" / "demo")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
