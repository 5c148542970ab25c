"""`--arch transformers` and `--arch timm`, dotted callables and objects of Python as arguments. A small package of the
same shape stands for transformers here; tests/frameworks uses the real ones."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from fold.sources.architecture.build import parse_arch_args
from support.commands import bnfold, refused
from support.loadable import plain


class PreTrainedModel(nn.Sequential):
    config_class = None


class Configuration:
    def __init__(self, channels: int = 5, num_classes: int = 4, **rest: object) -> None:
        self.channels, self.num_classes, self.rest = channels, num_classes, rest

    @classmethod
    def from_dict(cls, content: dict[str, object]) -> "Configuration":
        return cls(**content)


class Net(PreTrainedModel):
    config_class = Configuration

    def __init__(self, config: Configuration) -> None:
        super().__init__(*plain(config.channels, config.num_classes))
        assert not {"auto_map", "attn_implementation", "_attn_implementation"} & config.rest.keys()


class Auto:
    @classmethod
    def from_config(cls, config: Configuration) -> Net:
        assert isinstance(config, Configuration)
        return Net(config)


class Foreign(Net):
    """A class that is not of the package though it is found in it."""


@pytest.fixture(autouse=True)
def transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("transformers")
    for kind in (PreTrainedModel, Net, Auto):
        monkeypatch.setattr(kind, "__module__", "transformers.models.net")
        setattr(package, kind.__name__, kind)
    package.Foreign, package.pipeline, package.CONFIG_MAPPING = Foreign, print, {"net": Configuration}
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save(plain(7).state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path


CONFIG = {"architectures": ["Net"], "model_type": "net", "channels": 7, "_attn_implementation": "hub/kernel"}


def inspected(folder: Path, *options: str) -> str:
    done = bnfold("inspect", folder, *options, "--input", "3,8,8", "--json")
    assert done.returncode == 0, done.stderr
    assert [one["channels"] for one in json.loads(done.stdout)["batchnorms"]] == [7, 8]
    return done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--arch", "transformers"],
        ["--arch", "transformers:Auto.from_config"],
        ["--arch", "transformers:Net"],
        ["--arch", "transformers:Net", "--arch-arg", 'config={"model_type": "net", "channels": 7}'],
    ],
)
def test_the_configuration_beside_the_weights_makes_the_module(folder, options) -> None:
    if "--arch-arg" not in options:
        (folder / "config.json").write_text(json.dumps(CONFIG))
    assert "found pytorch_model.bin" in inspected(folder, *options)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({**CONFIG, "auto_map": {"AutoModel": "net.Net"}}, "names code of its own (auto_map)"),
        ({**CONFIG, "text_config": {"trust_remote_code": True}}, "names code of its own (trust_remote_code)"),
        (
            {**CONFIG, "architectures": ["pipeline"]},
            "names 'pipeline', which is no model of the installed transformers",
        ),
        ({**CONFIG, "architectures": ["Foreign"]}, "names 'Foreign', which is no model"),
        ({**CONFIG, "architectures": ["__class__"]}, "which is no model"),
        ({"architecture": "resnet18"}, "names no class under 'architectures'; it is timm's, --arch timm"),
        ({**CONFIG, "channels": "many"}, "calling it with () failed"),
        ("{", "is no JSON"),
    ],
)
def test_a_configuration_that_names_no_class_of_the_package_is_refused(folder, content, told) -> None:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert told in refused("inspect", folder, "--arch", "transformers", "--input", "3,8,8")


def test_without_a_configuration_or_its_package_one_line_says_so(folder, monkeypatch) -> None:
    told = "needs the config.json beside the weights; give their directory, or name the"
    assert f"{told} class, such as --arch transformers:" in refused("inspect", folder, "--arch", "transformers")
    assert f"{told} model, such as --arch timm:create_model" in refused("inspect", folder, "--arch", "timm")
    assert "takes a configuration; give the directory" in refused("inspect", folder, "--arch", "transformers:Net")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "other"}))
    told = refused("inspect", folder, "--arch", "transformers:Auto.from_config")
    assert "its model_type 'other' is none of the installed transformers" in told
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "needs the package 'timm'; install it" in refused("inspect", folder, "--arch", "timm")
    told = refused("inspect", folder, "--arch", "transformers:Auto.from_config", "--arch-arg", "trust_remote_code=true")
    assert "trust_remote_code runs code from elsewhere" in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (CONFIG, "--arch transformers, whose class is in the config.json beside them"),
        ({"architecture": "plain_net"}, "--arch timm, whose class is in the config.json beside them"),
        ({}, "--arch module:callable, such as torchvision.models:resnet18 or path/to/net.py:Net"),
        ([], "--arch module:callable, such as"),
    ],
)
def test_weights_without_arch_are_told_which_one_fits(folder, content, told) -> None:
    (folder / "config.json").write_text(json.dumps(content))
    assert f"holds only weights; name their architecture with {told}" in refused("inspect", folder)


class Timm(types.ModuleType):
    """As much of timm as `--arch timm` uses."""

    models = types.SimpleNamespace(model_entrypoint=lambda name: plain)

    @staticmethod
    def is_model(name: str) -> bool:
        return name == "plain_net"

    @staticmethod
    def list_models() -> list[str]:
        return ["plain_net"]

    @staticmethod
    def create_model(name: str, pretrained: bool, pretrained_cfg: object, **arguments: object) -> nn.Module:
        assert (name, pretrained, pretrained_cfg) == ("plain_net", False, {"input_size": [3, 8, 8]})
        return plain(**arguments)


TIMM = {"architecture": "plain_net", "num_classes": 4, "model_args": {"channels": 7},
        "pretrained_cfg": {"input_size": [3, 8, 8], "url": "https://elsewhere"}}  # fmt: skip


def test_a_configuration_of_timm(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", Timm("timm"))
    (folder / "config.json").write_text(json.dumps(TIMM))
    inspected(folder, "--arch", "timm")
    for change, told in [
        (
            {"architecture": "hf-hub:somebody/net"},
            "names 'hf-hub:somebody/net', which is no model of the installed timm",
        ),
        ({"architecture": "plain_nets"}, "did you mean plain_net?"),
        ({"model_args": {"checkpoint_path": "/tmp/x"}}, "checkpoint_path is no argument of a network"),
        ({"model_args": ["channels"]}, "model_args is no argument of a network"),
        ({"architecture": None, "architectures": ["Net"]}, "it is transformers', --arch transformers"),
    ]:
        (folder / "config.json").write_text(json.dumps({**TIMM, **change}))
        assert told in refused("inspect", folder, "--arch", "timm", "--input", "3,8,8")


def test_an_argument_may_name_an_object_of_python() -> None:
    texts = ["act=torch.nn.SiLU", "dtype=torch.float16", "make=support.loadable:CountingBatchNorm.forward",
             "file=weights.pth", "device=cuda:0", "module=torch.nn", "absent=torch.nn.Silu", 'text="torch.nn.SiLU"',
             'config={"a": [1]}']  # fmt: skip
    parsed = parse_arch_args(texts)
    assert (parsed["act"], parsed["dtype"]) == (nn.SiLU, torch.float16)
    assert parsed["make"].__name__ == "forward"
    same = {"file": "weights.pth", "device": "cuda:0", "module": "torch.nn", "absent": "torch.nn.Silu"}
    assert {key: parsed[key] for key in same} == same
    assert (parsed["text"], parsed["config"]) == ("torch.nn.SiLU", {"a": [1]})


def test_an_object_of_python_is_recorded_by_its_name(tmp_path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(act):\n return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), act())\n"
    )
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    torch.save(module.state_dict(), tmp_path / "net.pt")
    arch = ["--arch", tmp_path / "net.py:make", "--input", "1,4,4", "--samples", 1, "--out", tmp_path / "r"]
    assert bnfold("fold", tmp_path / "net.pt", *arch, "--arch-arg", "act=torch.nn:Tanh").returncode == 0
    source = json.loads((tmp_path / "r/net/1/manifest.json").read_text())["source"]
    assert source["arch_args"] == {"act": "torch.nn:Tanh"}
    told = refused("fold", tmp_path / "net.pt", *arch, "--arch-arg", "act=torch.nn:Tan")
    assert "torch.nn has no callable 'Tan'; did you mean Tanh" in told
