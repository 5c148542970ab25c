"""`make demo`: the whole way of a network, from real images through training, folding and proof to served answers.

    python -m models.demo --out build/demo

Each step runs the command that a user would type. A trained checkpoint of an earlier run is reused. The first step that
fails ends the demo with one line. The service is always stopped.
"""

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from torch import nn

from fold.errors import BnfoldError
from models import digits
from models.resnet import resnet

ARCH = "models.resnet:resnet"
NAME = "digits"
BATCH = 32
STARTUP_SECONDS = 60.0
SHUTDOWN_SECONDS = 20.0
REQUEST_SECONDS = 120.0

console = Console(highlight=False)


class DemoError(Exception):
    """A step failed. The text is the line that the user reads, `code` the exit code of the demo."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Trained:
    """The checkpoint, its network, and the network's accuracy on the held-out images."""

    file: Path
    module: nn.Module
    accuracy: float


@dataclass(frozen=True)
class Answers:
    """The service's answers: a class for each held-out image, and label and probability for one image as PNG."""

    classes: NDArray[np.int64]
    label: str
    probability: float


def demo(out: Path) -> None:
    """Run all steps and keep everything under `out`. Raises `DemoError` for the first that fails."""
    data = digits.load()
    repository = out / "repository"
    trained = train(out / "resnet.pt", data)
    manifest = fold(trained.file, repository)
    verify(repository / NAME / "1")
    with served(_bnfold("serve", str(repository)), log=out / "serve.log") as url:
        answers = predict(url, data, trained, picture=out / "digit.png")
        verdict = prove(url)
    summary(trained, manifest, answers, verdict, out)


def train(file: Path, data: digits.Digits) -> Trained:
    """Train the network, or read it back if `file` holds one that was trained in the same way."""
    step("Train", f"{len(data.train_labels)} images of handwritten digits, a residual network with BatchNorm")
    record = digits.training_record(ARCH, {}, data)
    state = _trained_before(file, record)
    module: nn.Module = resnet()
    if state is not None:
        console.print(f"skipped: {file} was already trained in the same way")
        module.load_state_dict(state)
        reached = digits.accuracy(module, data.test_images, data.test_labels)
    else:
        module = digits.train(resnet, {}, data, console=console)
        reached = digits.accuracy(module, data.test_images, data.test_labels)
        if reached < digits.LEAST_ACCURACY:
            raise DemoError(f"the training reached {reached:.4f}, expected at least {digits.LEAST_ACCURACY}")
        digits.save(file, module, reached=reached, record=record)
    console.print(
        f"held-out accuracy {reached:.4f} on {len(data.test_labels)} images that were not in the training set"
    )
    return Trained(file, module.eval(), reached)


def fold(checkpoint: Path, repository: Path) -> dict[str, Any]:
    """Fold the checkpoint into a new repository, by the command line. Returns the published manifest."""
    step("Fold", "each BatchNorm goes into the weights around it; the result is proven before it is published")
    shutil.rmtree(repository, ignore_errors=True)
    _command("fold", str(checkpoint), "--arch", ARCH, "--out", str(repository), "--name", NAME)
    file = repository / NAME / "1" / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DemoError(f"{file}: cannot be read after folding: {error}") from error
    return manifest


def verify(version: Path) -> None:
    """Prove again, from the published directory."""
    step("Verify", f"digests of {version}, and the folded graph against the PyTorch reference that lies beside it")
    _command("verify", str(version))


@contextmanager
def served(command: list[str], *, log: Path) -> Iterator[str]:
    """Run `command --port PORT` on a free port. Yields the URL of the service when it is ready.

    The service is stopped by SIGTERM, and killed if that fails. Raises `DemoError` if it dies, is not ready in time, or
    does not exit with 0 after SIGTERM.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    step("Serve", f"the service starts at {url} (its output goes to {log})")
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=stream, stderr=subprocess.STDOUT)
    try:
        started = time.perf_counter()
        _wait_until_ready(process, url, log)
        console.print(f"ready after {time.perf_counter() - started:.1f} s")
        yield url
        step("Stop", "SIGTERM: the service finishes what it has begun, and exits")
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"the service still ran {SHUTDOWN_SECONDS:.0f} s after SIGTERM; see {log}") from error
        if code != 0:
            raise DemoError(f"the service exited with {code} after SIGTERM, expected 0; see {log}")
        console.print("stopped, exit status 0")
    finally:
        _stop(process)


def predict(url: str, data: digits.Digits, trained: Trained, *, picture: Path) -> Answers:
    """Send every held-out image as numbers, and one as a PNG. Raises `DemoError` if a class differs from PyTorch's."""
    address = f"{url}/v1/models/{NAME}:predict"
    step("Predict", f"all {len(data.test_labels)} held-out images over HTTP: POST {address}")
    rows: list[list[float]] = []
    for start in range(0, len(data.test_images), BATCH):
        instances = data.test_images[start : start + BATCH].tolist()
        rows += _predictions(address, json.dumps({"instances": instances}).encode(), "application/json")
    classes = np.asarray(rows).argmax(1)
    expected = digits.predict(trained.module, data.test_images)
    differing = int((classes != expected).sum())
    if differing:
        raise DemoError(f"served and PyTorch's classes differ for {differing} of {len(expected)} images")
    reached = float((classes == data.test_labels).mean())
    console.print(f"accuracy {reached:.4f} served, {trained.accuracy:.4f} in PyTorch; the same class for every image")

    picture.write_bytes(_png(data.test_images[0]))
    [answer] = _predictions(address, picture.read_bytes(), "image/png")
    label, probability = answer["label"], answer["probability"]
    console.print(f"{picture} sent as an image: {label}, with probability {probability:.3f}")
    if label != str(expected[0]):
        raise DemoError(f"{picture} was recognised as {label}, its numbers as {expected[0]}; the preprocessing differs")
    return Answers(classes, label, probability)


def prove(url: str) -> dict[str, Any]:
    """Let the service prove its model. Returns the verdict; raises `DemoError` if it is negative."""
    address = f"{url}/v2/models/{NAME}/equivalence"
    step("Prove", f"the very session that answers is compared with PyTorch in float64: POST {address}")
    verdict: dict[str, Any] = _post(address, json.dumps({"samples": 64, "seed": 0}).encode(), "application/json")
    if verdict.get("equivalent") is not True:
        raise DemoError(f"the service does not serve the trained model: {json.dumps(verdict)}")
    console.print(escape(verdict["message"]), soft_wrap=True)
    return verdict


def summary(trained: Trained, manifest: dict[str, Any], answers: Answers, verdict: dict[str, Any], out: Path) -> None:
    """Print the results, and the next commands."""
    fold = manifest["fold"]
    version = out / "repository" / NAME / "1"
    picture = f"curl -H 'Content-Type: image/png' --data-binary @{out / 'digit.png'}"
    console.print()
    console.rule("[bold]What you saw", align="left", style="green")
    for line in (
        f"trained  a residual network: {trained.accuracy:.4f} of {len(answers.classes)} held-out images are right",
        f"folded   {len(fold['folded'])} of {fold['batchnorms']} BatchNorms into the weights around them",
        f"served   {len(answers.classes)} images over HTTP, each with the class that PyTorch gives it",
        f"sent     one of them as a PNG: {answers.label}, with probability {answers.probability:.3f}",
        f"proven   on the serving session: {verdict['message']}",
        f"written  {version}: model.onnx, reference.pt2, canary.npz, report.html, manifest.json",
        "",
        "Next: serve the model, send it the image from another terminal, then fold your own network.",
        "  make serve",
        f"  {picture} http://127.0.0.1:8000/v1/models/{NAME}:predict",
        "  bnfold fold YOUR.pt --arch your.module:factory --input 3,224,224 --out repository",
    ):
        console.print(escape(line), soft_wrap=True)


def step(title: str, text: str) -> None:
    """Print the name of the next step."""
    console.print()
    console.rule(f"[bold]{title}", align="left")
    console.print(escape(text), soft_wrap=True)


def _trained_before(file: Path, record: dict[str, object]) -> dict[str, torch.Tensor] | None:
    """The weights in `file`, or None if it has none that were trained as `record` says."""
    try:
        checkpoint = torch.load(file, weights_only=True)
        if checkpoint["training"] == record:
            state: dict[str, torch.Tensor] = checkpoint["state_dict"]
            return state
    except Exception:  # torch.load fails in many ways; after any of them the network is trained again
        return None
    return None


def _bnfold(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fold", *arguments]


def _command(*arguments: str) -> None:
    """Run `bnfold` with its output on this terminal. Raises `DemoError` with its exit status."""
    console.print(f"[bold]$ bnfold {escape(' '.join(arguments))}", soft_wrap=True)
    code = subprocess.run(_bnfold(*arguments), check=False).returncode
    if code != 0:
        raise DemoError(f"bnfold {arguments[0]} failed with exit status {code}; its own message is above", code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            console.print(escape(log.read_text(encoding="utf-8", errors="replace")))
            raise DemoError(f"the service died with exit status {process.returncode}; its output is above")
        try:
            with _opener.open(f"{url}/v2/health/ready", timeout=5):
                return
        except OSError:  # refused while it starts, 503 until the models are loaded
            time.sleep(0.05)
    console.print(escape(log.read_text(encoding="utf-8", errors="replace")))
    raise DemoError(f"the service was not ready after {STARTUP_SECONDS:.0f} s; its output is above")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that still runs after a step failed: SIGTERM, then SIGKILL."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# The service is on this machine, so a proxy of the environment must not be used.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _post(address: str, body: bytes, content_type: str) -> dict[str, Any]:
    request = urllib.request.Request(address, body, {"Content-Type": content_type})
    try:
        with _opener.open(request, timeout=REQUEST_SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise DemoError(f"POST {address}: {error.code}: {text}") from error
    except (OSError, ValueError) as error:
        raise DemoError(f"POST {address}: {error}") from error
    return answer


def _png(image: NDArray[np.float32]) -> bytes:
    pixels = np.rint(image[0] * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _predictions(address: str, body: bytes, content_type: str) -> list[Any]:
    predictions: list[Any] = _post(address, body, content_type)["predictions"]
    return predictions


def _terminated(signum: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, so that the service does not outlive the demo."""
    raise DemoError("the demo was told to stop", 128 + signum)


def _main(
    out: Annotated[Path, typer.Option(help="The folder for the files of the demo.")] = Path("build/demo"),
) -> None:
    """Train, fold, prove, serve, predict and prove again."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: {out}: cannot be created ({error.strerror}); choose another --out", file=sys.stderr)
        raise typer.Exit(2) from error
    try:
        demo(out)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.code) from error
    except BnfoldError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(_main)
    app()
