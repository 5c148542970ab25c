"""`--arch` means the user's module: from a working directory with a checkpoint to what was published and recorded."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from support.commands import refused, run
from support.folding import randomise

NET = """
from torch import nn

def make(slope=0.3):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(slope))
"""


NOISY = """
class Noisy(nn.Module):
    def forward(self, x):
        print("forward")
        return x

"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """A working directory with a checkpoint, and `sys.path` and `sys.modules` as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.3))
    torch.save(randomise(module, seed=1).state_dict(), "net.pt")
    yield module.eval()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("nets", "net", "fold_net") or name.startswith("bnfold_arch"):
            del sys.modules[name]


def write(file: str, text: str = NET) -> None:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("file", "arch"),
    [
        ("models/cnn.py", "models.cnn:make"),  # as our own models.cnn is called, and without an __init__.py
        ("net.py", "net:make"),
        ("nets/leaky/net.py", "nets.leaky.net:make"),
        ("code/net.py", "code/net.py:make"),
        ("code/fold.py", "code/fold.py:make"),
        ("code/random.py", "code/random.py:make"),
        ("code/my net.v2.py", "code/my net.v2.py:make"),
    ],
)
def test_the_users_own_file_comes_first_and_is_recorded(project, file, arch) -> None:
    import models.cnn  # noqa: F401, PLC0415  # ours is imported already

    write(file)
    answer, err = run("fold", "net.pt", "--arch", arch, "--input", "1,6,6", "--out", "r", "--name", "net")
    assert f"net.pt: --arch {arch} was found in {file}" in err.splitlines()
    assert answer["arch_file"] == str(Path(file).absolute())
    source = json.loads(Path("r/net/1/manifest.json").read_text())["source"]
    assert source["arch_file"] in file
    assert Path(file).name == Path(source["arch_file"]).name
    assert source["arch_sha256"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    x = np.random.default_rng(0).standard_normal((3, 1, 6, 6)).astype(np.float32)
    (served,) = onnxruntime.InferenceSession("r/net/1/model.onnx").run(None, {"input": x})
    np.testing.assert_allclose(served, project(torch.from_numpy(x)).detach(), rtol=0, atol=1e-5)


def test_a_file_in_a_package_may_import_from_it() -> None:
    write("code/nets/__init__.py", "")
    write("code/nets/parts.py", "SLOPE = 0.3\n")
    write("code/nets/net.py", "from nets.parts import SLOPE\nfrom . import parts\n" + NET)
    fold = ("fold", "net.pt", "--arch", "code/nets/net.py:make", "--input", "1,6,6", "--out", "r")
    assert run(*fold)[0]["verdict"]["equivalent"] is True


def test_a_script_may_import_the_files_beside_it() -> None:
    write("code/nets/parts.py", "SLOPE = 0.3\n")
    write("code/net.py", "from nets.parts import SLOPE\n" + NET)
    fold = ("fold", "net.pt", "--arch", "code/net.py:make", "--input", "1,6,6", "--out", "r")
    assert run(*fold)[0]["verdict"]["equivalent"] is True


@pytest.mark.parametrize("file", ["fold.py", "fold/net.py", "service/__init__.py", "torch/net.py", "random.py"])
def test_a_name_of_a_module_that_bnfold_uses_is_refused(file) -> None:
    write(file)
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    top = name.partition(".")[0]
    err = refused("fold", "net.pt", "--arch", f"{name}:make", "--input", "1,6,6", "--out", "r")
    assert f"bnfold itself uses a module named {top}; rename yours, or give its file" in err


def test_a_folder_of_the_same_name_without_modules_is_none() -> None:
    write("models/best.txt")
    inspected = ("inspect", "net.pt", "--arch", "models.cnn:cnn")
    assert "models/cnn.py" in refused_arch(*inspected)
    write("models/other.py")
    assert "there is no module 'models.cnn'; did you mean models.other" in refused(*inspected)


def refused_arch(*arguments: str) -> str:
    """Weights that do not fit: the module was found, and it is another one."""
    err = refused(*arguments)
    assert "does not fit --arch" in err
    import models.cnn  # noqa: PLC0415

    return str(models.cnn.__file__)


@pytest.mark.parametrize(
    "leaves", ["import argparse\nargparse.ArgumentParser().exit(2)\n", "def make():\n    raise SystemExit\n"]
)
def test_a_script_that_exits_does_not_end_bnfold(leaves) -> None:
    """Without an error it looked like a fold that had been done."""
    write("net.py", leaves if "make" in leaves else leaves + NET)
    assert "failed: " in refused("fold", "net.pt", "--arch", "net:make", "--input", "1,6,6", "--out", "r")


def test_what_a_module_prints_is_not_among_our_json() -> None:
    noisy = NET.replace("LeakyReLU(slope)", "LeakyReLU(slope), Noisy()").replace("def make", NOISY + "def make")
    write("net.py", "print('imported')\n" + noisy)
    answer, err = run("fold", "net.pt", "--arch", "net:make", "--input", "1,6,6", "--out", "r")
    assert answer["verdict"]["equivalent"] is True
    assert "imported" in err


def test_a_file_that_there_is_not_is_told_its_neighbours() -> None:
    write("code/net.py")
    err = refused("inspect", "net.pt", "--arch", "code/nett.py:make")
    assert "there is no file" in err
    assert "did you mean net.py?" in err
