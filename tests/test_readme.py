"""The README's examples are run, in order, as a reader would: they cannot rot."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from fold.cli import app
from support import ROOT, standins
from support.commands import README, examples, run_line, run_python
from support.service.serving import PATIENCE

EXPECTED = {
    "torchvision": "published repository/resnet18/1",
    "timm": "would be folded",
    "transformers": "would be folded",
    "--name digits": "published build/repository/digits/1",
    "--normalize": "scale folded into conv.weight",
    "build/inspection.html": "15 would be folded",
    "bnfold recalibrate": "written to build/recalibrated.pt",
    "bnfold verify build/repository/digits --json": '"equivalent":true',
    "/v2/models/digits\n": '"platform":"onnxruntime_onnx"',
    "repository/index": '"state":"READY"',
    "image/png": '"label":"',
    "digits/infer": ':0:0"]',  # the class of the image, an unmistakable 0, and its label
    "equivalence": '"equivalent":true',
    "/metrics": "bnfold_",
    "tritonclient": "right: 1.0",
    "fold.load": "right: ",
    "bnfold predict": "they agree",
    "fold_model": "folded, 0 kept",
}
"""What the output must hold, for examples that contain the key."""

SHORTER = "models.digits train --epochs 6"
"""Of 30 epochs: enough for what is asserted here."""
OWN = {
    "--arch torchvision.models:resnet18 --input 3,224,224": "--arch torchvision.models:resnet18 --input 3,16,16",
    "bnfold fold resnet50.pt": "bnfold inspect resnet50.pt",
    "model_name=resnet50 --out repository": "model_name=resnet50",
    "bnfold fold hf-resnet": "bnfold inspect hf-resnet",
    "--arch transformers --input 3,224,224 --out repository": "--arch transformers --input 3,16,16",
}
"""Cheaper forms of the examples of other frameworks, whose stand-ins are small: one fold shows what they all do."""


def test_every_example_runs(tmp_path, monkeypatch) -> None:
    """The server, curl and the first fold are processes, as for a reader. The rest would only load PyTorch again, so
    it runs in this process, and trains for less long. Other frameworks are small stand-ins."""
    standins.install(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NO_PROXY": "localhost"}
    (tmp_path / "build").mkdir()
    (tmp_path / "models").symlink_to(ROOT / "models")  # a reader is in the checkout; the networks are not installed
    server: subprocess.Popen[bytes] | None = None
    ran = dict.fromkeys(EXPECTED, 0)
    try:
        for language, written in examples():
            text = written.replace("8000", str(port))
            for example, cheaper in OWN.items():
                text = text.replace(example, cheaper)
            if language == "sh server":
                server = subprocess.Popen(["bash", "-c", f"exec {text}"], cwd=tmp_path, env=environment)
                _wait_until_ready(port)
                continue
            if language == "python":
                output = run_python(text, tmp_path)
            elif "curl" in text:
                output = _shell(text, tmp_path, environment)
            else:
                output = ""
                for line in text.replace("\\\n", " ").replace("models.digits train", SHORTER).splitlines():
                    first = "--name digits" in line
                    output += _shell(line, tmp_path, environment) if first else run_line(line, tmp_path)
            for key, wanted in EXPECTED.items():
                if key in text:
                    ran[key] += 1
                    output = output.replace('": ', '":')  # JSON with or without spaces
                    assert wanted in output, f"{text}\n{output}"
        assert all(ran.values()), ran
        assert server is not None
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    finally:
        if server is not None and server.poll() is None:
            server.kill()
            server.wait()


def _shell(text: str, folder: Path, environment: dict[str, str]) -> str:
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=PATIENCE) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the server did not become ready")


def test_every_command_and_make_target_stands_in_the_readme() -> None:
    text = README.read_text()
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"bnfold {command.callback.__name__}" in text
    for target in ("make demo", "make test", "make integration", "make frameworks", "make serve"):
        assert target in text
