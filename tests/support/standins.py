"""Small packages in the shape of torchvision, timm and transformers, for the README's examples. The real ones are not
installed with the tests, and their networks take a minute to prove."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import save_file
from torch import nn

from support.loadable import plain

INPUT = (3, 16, 16)


def resnet18() -> nn.Module:
    return plain()


def create_model(model_name: str) -> nn.Module:
    assert model_name == "resnet50"
    module = plain()
    module.default_cfg = {"input_size": INPUT}
    return module


class ResNetConfig:
    @classmethod
    def from_dict(cls, content: dict[str, object]) -> "ResNetConfig":
        assert content["model_type"] == "resnet"
        return cls()


class PreTrainedModel(nn.Sequential):
    config_class = ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(*plain())

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir()
        save_file(self.state_dict(), Path(folder) / "model.safetensors")
        config = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
        (Path(folder) / "config.json").write_text(json.dumps(config))


class ResNetForImageClassification(PreTrainedModel):
    pass


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process import them."""

    def add(name: str, *contents: object) -> ModuleType:
        package = ModuleType(name)
        for one in contents:
            setattr(package, one.__name__, one)
            monkeypatch.setattr(one, "__module__", f"{name}.models")
        monkeypatch.setitem(sys.modules, name, package)
        return package

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # bnfold sets it for good
    add("torchvision").models = add("torchvision.models", resnet18)
    add("timm", create_model)
    package = add("transformers", ResNetConfig, PreTrainedModel, ResNetForImageClassification)
    package.CONFIG_MAPPING = {"resnet": ResNetConfig}
