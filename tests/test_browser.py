"""The two pages in a real browser: the service's, and the report that is written beside a model."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from folding import architecture, randomise

from fold.convert import Source, Target, convert

CHROMIUM = shutil.which("chromium") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium; .ci/run installs it")


def dump(url: str, profile: Path, *extra: str) -> str:
    """The document after the browser has loaded it. Every name but the loopback address fails to resolve."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-dev-shm-usage --virtual-time-budget=3000"
    )
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    command = [CHROMIUM, *flags.split(), rules, f"--user-data-dir={profile}", *extra, "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    torch.save(randomise(architecture("vgg_after"), seed=0, hostile=False).state_dict(), folder / "m.pt")
    source = Source(folder / "m.pt", "models.vgg_after:vgg_after", (), ["1,8,8"])
    assert convert(source, Target(folder / "repository", "digits")).path is not None
    return folder / "repository"


@pytest.fixture(scope="module")
def service_url(repository) -> Iterator[str]:
    command = [sys.executable, "-m", "fold", "serve", str(repository), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = next(line for line in server.stderr if "serving" in line)
    yield next(word for word in line.split() if word.startswith("http"))
    server.terminate()
    server.wait(60)
    server.stderr.close()


def test_the_services_page(service_url, tmp_path) -> None:
    document = dump(service_url, tmp_path)
    assert "<h2>digits</h2>" in document
    assert "BatchNorms folded" in document


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_the_report(repository, tmp_path, width) -> None:
    report = repository / "digits" / "1" / "report.html"
    document = dump(report.as_uri(), tmp_path, f"--window-size={width},900")
    assert "equivalent over 16 samples" in document
    assert "pads its input with zeros" in document
    assert "<h2>Folded</h2>" in document
