"""Weights of every type in layers of every kind: the module comes back plain, computes the same, and folds."""

import copy
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from fold.errors import BnfoldError
from fold.sources.architecture.build import parse_arch_args
from fold.sources.architecture.factory import load_architecture
from fold.sources.export import export_module
from fold.sources.source import Source, load_module
from support import loadable
from support.folding import check_fold, randomise

PATTERN = (3, 9, 8)
NORMED = {
    "weight": ("weight_normed", "weight_normed_by_hooks"),
    "spectral": ("spectral_normed", "spectral_normed_by_hooks"),
}


def trained(name: str) -> nn.Module:
    torch.manual_seed(6)
    module = randomise(getattr(loadable, name)(), seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module.eval()


def loaded(tmp_path, state, arch: str, *arguments: str, suffix: str = "pt") -> nn.Module:
    path = tmp_path / f"m.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    return load_module(Source(path, f"support.loadable:{arch}", arguments)).module


def test_a_checkpoint_in_its_architecture_with_arguments(tmp_path) -> None:
    state = loadable.plain(channels=7, num_classes=2).state_dict()
    module = loaded(tmp_path, state, "plain", "channels=7", "num_classes=2", suffix="safetensors")
    assert not module.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("arch", ["plain", "half"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_weights_of_every_type_become_float32_once(tmp_path, dtype, arch) -> None:
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor
             for name, tensor in trained("plain").double().state_dict().items()}  # fmt: skip
    state["0.weight"] = state["0.weight"] + torch.tensor(2.0**-30, dtype=dtype)
    module = loaded(tmp_path, state, arch)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name].float() if tensor.is_floating_point() else state[name])
        assert tensor.dtype in (torch.float32, torch.int64)


@pytest.mark.parametrize("arch", ["synchronised", "subclassed", "lazy"])
def test_batchnorms_of_other_classes_and_lazy_layers_fold_like_plain_ones(tmp_path, arch) -> None:
    reference = trained("plain")
    module = loaded(tmp_path, reference.state_dict(), arch)
    x = torch.randn(2, *PATTERN)
    assert torch.equal(module(x), reference(x))
    model = export_module(module, x)
    first = ["Conv", "BatchNormalization", "Relu", "Conv", "BatchNormalization"]
    assert [node.op_type for node in model.graph][:5] == first
    check_fold(model, kept=0)


def test_lazy_layers_become_what_they_stand_for(tmp_path) -> None:
    module = loaded(tmp_path, trained("plain").state_dict(), "lazy")
    assert [type(layer) for layer in module] == [type(layer) for layer in loadable.plain()]
    assert [module[0].in_channels, module[1].num_features, module[3].in_channels, module[7].in_features] == [3, 5, 5, 6]
    copy.deepcopy(module)
    with pytest.raises(BnfoldError, match="lazy layers without weights"):
        export_module(loadable.lazy(), torch.randn(2, *PATTERN))
    incomplete = {name: tensor for name, tensor in trained("plain").state_dict().items() if name != "0.weight"}
    with pytest.raises(BnfoldError, match=r"1 missing: 0\.weight"):
        loaded(tmp_path, incomplete, "lazy")


@pytest.mark.parametrize("kind", ["weight", "spectral"])
@pytest.mark.parametrize("written", [0, 1], ids=["parametrised", "by hooks"])
@pytest.mark.parametrize("read", [0, 1], ids=["into parametrised", "into hooks"])
def test_weight_norm_and_spectral_norm_each_way(tmp_path, kind, written, read) -> None:
    reference = trained(NORMED[kind][written])
    module = loaded(tmp_path, reference.state_dict(), NORMED[kind][read])
    assert not any(parametrize.is_parametrized(layer) or layer._forward_pre_hooks for layer in module.modules())
    assert set(module.state_dict()) == set(loadable.plain().state_dict())
    reference = reference.double()
    x = torch.randn(2, *PATTERN, dtype=torch.float64)
    reference(x)  # hooks compute their weight here
    for name in ("0", "7"):
        exact = reference.get_submodule(name).weight
        assert torch.equal(module.get_submodule(name).weight, exact.float())  # rounded once
    np.testing.assert_allclose(module.double()(x).detach(), reference(x).detach(), rtol=1e-5, atol=1e-6)


def test_weight_norm_folds(tmp_path) -> None:
    module = loaded(tmp_path, trained("weight_normed_by_hooks").state_dict(), "weight_normed")
    check_fold(export_module(module, torch.randn(2, *PATTERN)), kept=0)


def test_tied_weights_stay_tied(tmp_path) -> None:
    state = {name: tensor.clone() for name, tensor in loadable.Tied().state_dict().items()}
    assert loaded(tmp_path, state, "Tied").last.weight is not None
    del state["last.weight"]  # as safetensors leaves it out
    module = loaded(tmp_path, state, "Tied")
    assert module.last.weight is module.first.weight
    assert torch.equal(module.last.weight, state["first.weight"])
    check_fold(export_module(randomise(module, seed=1), torch.randn(2, 6)))
    with pytest.raises(BnfoldError, match=r"first\.weight and last\.weight differ, but are one tensor"):
        loaded(tmp_path, {**state, "last.weight": state["first.weight"] + 1}, "Tied")


@pytest.mark.parametrize("wrapper", [None, "model", "ema"])
def test_a_whole_module_needs_no_architecture_where_it_is_trusted(tmp_path, wrapper) -> None:
    module = trained("half")
    torch.save({wrapper: module} if wrapper else module, tmp_path / "m.pt")
    result = load_module(Source(tmp_path / "m.pt", trust=True))
    assert result.described["kind"] == "module"
    assert {tensor.dtype for tensor in result.module.parameters()} == {torch.float32}
    with pytest.raises(BnfoldError, match="--trust"):
        load_module(Source(tmp_path / "m.pt"))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_gives_its_weights_to_an_architecture_where_it_is_trusted(tmp_path) -> None:
    module = trained("plain")
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    result = load_module(Source(tmp_path / "m.pt", "support.loadable:plain", trust=True)).module
    x = torch.randn(2, *PATTERN)
    assert torch.equal(result(x), module(x))
    with pytest.raises(BnfoldError, match="of which only the weights are used; name their architecture"):
        load_module(Source(tmp_path / "m.pt", trust=True))


def test_weights_alone_want_an_architecture(tmp_path) -> None:
    torch.save(loadable.plain().state_dict(), tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="holds only weights; name their architecture with --arch"):
        load_module(Source(tmp_path / "m.pt"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("models.resnt:resnet", "models.resnet"),
        ("models.resnet:resnt", "did you mean resnet"),
        ("models.resnet", "expected module:callable"),
        ("net.py", r"or FILE\.py:callable.*names$"),
        ("torchvision.models.resnet18", r"did you mean torchvision\.models:resnet18\?$"),
        ("torch:BatchNorm2d", r"torch has no callable 'BatchNorm2d'; did you mean torch\.nn:BatchNorm2d\?$"),
        (
            "nowhere.at.all:x",
            r"no module 'nowhere\.at\.all'; install nowhere beside bnfold, or run bnfold in the folder",
        ),
    ],
)
def test_an_unknown_architecture_is_told_its_neighbours(spec, message) -> None:
    with pytest.raises(BnfoldError, match=message):
        load_architecture(spec)


def test_an_architecture_that_takes_other_arguments_or_gives_no_module(tmp_path) -> None:
    with pytest.raises(BnfoldError, match="check --arch-arg"):
        loaded(tmp_path, loadable.plain().state_dict(), "plain", "colour=3")
    with pytest.raises(BnfoldError, match=r"returned a Tensor, expected a torch\.nn\.Module"):
        load_module(Source(tmp_path / "m.pt", "torch:ones", ["size=[3]"]))


def test_arguments_are_typed() -> None:
    given = ["a=3", "b=0.5", "c=true", "d=[1, 2]", "e=(3, 4)", "f=relu", "g=None", "h=a=b", "i=null", "j=False"]
    expected = {"a": 3, "b": 0.5, "c": True, "d": [1, 2], "e": (3, 4), "f": "relu", "g": None, "h": "a=b", "i": None}
    assert parse_arch_args(given) == {**expected, "j": False}
    for wrong in ("channels", "=3", "a b=3"):
        with pytest.raises(BnfoldError, match="key=value"):
            parse_arch_args([wrong])
