"""The wheel, installed into an environment of its own and used outside of the checkout, as users have it.

The environment holds what the wheel's metadata ask for and nothing else, so a dependency that they do not name is
missing there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import onnx_ir as ir
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fold import __version__
from support import ROOT
from support.service.serving import PATIENCE

pytestmark = pytest.mark.integration

PIP = (sys.executable, "-m", "pip")
OFFLINE = ("--no-index", "--quiet", "--disable-pip-version-check")
NET = """
    <ir_version: 9, opset_import: ["" : 18]>
    g (float[n,1,3] x) => (float[n,2,3] y)
    <float[2,1,1] W = {2,-3}, float[2] gamma = {1,-2}, float[2] beta = {3,4}, float[2] mean = {5,6},
     float[2] variance = {1,2}> { u = Conv(x, W) y = BatchNormalization(u, gamma, beta, mean, variance) }
"""


def needed(requirements: Iterable[str], extra: str = "") -> dict[str, Distribution]:
    """The installed packages that requirements lead to, by name. `extra` is the one that is asked for."""
    found: dict[str, Distribution] = {}
    waiting, seen = [(text, frozenset({extra})) for text in requirements], set()
    while waiting:
        text, extras = waiting.pop()
        requirement = Requirement(text)
        wanted = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": one}) for one in extras)
        if applies and wanted not in seen:
            seen.add(wanted)
            found[wanted[0]] = distribution(requirement.name)
            waiting += [(further, wanted[1]) for further in found[wanted[0]].requires or ()]
    return found


def link(packages: Iterable[Distribution], site: Path) -> None:
    """Let an environment have these packages, which this process has."""
    for package in packages:
        for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            place = site / name
            if not place.exists():  # a namespace, such as google, is one folder of several packages
                place.symlink_to(Path(str(package.locate_file(name))))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("fold", "service"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*PIP, "wheel", *OFFLINE, "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (built,) = folder.glob("bnfold-*.whl")
    assert built.name == f"bnfold-{__version__}-py3-none-any.whl"
    return built


@pytest.fixture(scope="module")
def requirements(wheel: Path) -> list[str]:
    return PathDistribution(zipfile.Path(wheel, f"bnfold-{__version__}.dist-info/")).requires or []


@pytest.fixture(scope="module")
def environment(wheel: Path, requirements: list[str]) -> Path:
    """A folder with an environment in which pip has installed `bnfold[cpu]`, without downloading what it needs."""
    folder = wheel.parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    link(needed(requirements, "cpu").values(), site)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", *OFFLINE, "--no-compile", f"{wheel}[cpu]"],
                   check=True, env=_plain())  # fmt: skip
    ir.save(ir.from_onnx_text(NET), folder / "net.onnx")
    return folder


def bnfold(folder: Path, *words: str) -> str:
    """What a command prints on stdout; it must end well."""
    command = [folder / "venv" / "bin" / "bnfold", *words]
    done = subprocess.run(command, cwd=folder, env=_plain(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _plain() -> dict[str, str]:
    """The environment of a user: it leads to no checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "BNFOLD_"))}


def test_the_wheel_folds_proves_inspects_and_serves(environment: Path) -> None:
    assert bnfold(environment, "--version") == f"bnfold {__version__}\n"
    folded = json.loads(bnfold(environment, "fold", "net.onnx", "--out", "repository", "--json"))
    assert (len(folded["folded"]), folded["verdict"]["equivalent"]) == (1, True)
    assert (environment / "repository" / "net" / "1" / "report.html").is_file()
    assert json.loads(bnfold(environment, "verify", "repository/net", "--json"))["equivalent"] is True
    assert len(json.loads(bnfold(environment, "inspect", "net.onnx", "--json"))["batchnorms"]) == 1
    serve = [environment / "venv" / "bin" / "bnfold", "serve", "repository", "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(serve, cwd=environment, env=_plain(), stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        said = next(line for line in service.stderr if line.startswith("bnfold: serving net/1 on "))
        with urllib.request.urlopen(f"{said.split()[4]}/", timeout=PATIENCE) as page:
            assert b"<h2>net</h2>" in page.read()
        for file in ("app.js", "page.css"):
            with urllib.request.urlopen(f"{said.split()[4]}/static/{file}", timeout=PATIENCE) as static:
                assert static.read() == (ROOT / "service" / "http" / "page" / "static" / file).read_bytes()
        service.send_signal(signal.SIGTERM)
        assert service.wait(PATIENCE) == 0


def test_the_package_is_imported_from_the_environment_and_has_its_metadata(environment: Path) -> None:
    code = (
        "import fold, importlib.metadata as m; found = m.metadata('bnfold')\n"
        "print(fold.__file__, fold.__version__, found['Version'], found['Author'], found['Keywords'], sep='\\n')"
    )
    python = environment / "venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", code], cwd=environment, env=_plain(), capture_output=True, text=True, check=True
    )
    file, *versions, author, keywords = done.stdout.splitlines()
    assert Path(file).is_relative_to(environment)
    assert versions == [__version__, __version__]
    assert author
    assert "batchnorm" in keywords.split(",")


def test_pip_installs_nothing_that_only_an_extra_needs(requirements: list[str]) -> None:
    names = {canonicalize_name(Requirement(text).name) for text in requirements if "extra ==" in text}
    assert {"ray", "pyarrow", "scikit-learn", "playwright", "onnxruntime", "onnxruntime-gpu"} < names
    assert names & needed(requirements).keys() == {"fsspec"}, "which PyTorch needs, too"
