"""Where in a file the weights lie: the usual wrappers and prefixes, by name, and averaged ones."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fold.errors import BnfoldError
from fold.sources.checkpoint.checkpoint import load_checkpoint
from support.loadable import plain


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return plain().state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def load(tmp_path, content, **options):
    torch.save(content, tmp_path / "m.pt")
    return load_checkpoint(tmp_path / "m.pt", **options)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "net", "ema", "whatever"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_state_dict_is_found_in_its_wrapper(tmp_path, wrapper, prefix) -> None:
    state = weights()
    content = {f"{prefix}{key}": value for key, value in state.items()}
    optimiser = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(3.0)}}, "param_groups": []}
    loaded = load(tmp_path, {wrapper: content, "epoch": 3, "optimizer": optimiser} if wrapper else content)
    assert equal(loaded.tensors, state)
    assert bool(loaded.notes) == (wrapper == "ema")  # that they are averaged is told


def test_hyper_parameters_and_losses_are_no_weights(tmp_path) -> None:
    beside = {"hyper_parameters": {"class_weights": torch.ones(4)}, "criterion": {"weight": torch.ones(2)},
              "step": torch.tensor(5)}  # fmt: skip
    assert equal(load(tmp_path, {"generator": weights(), **beside}).tensors, weights())


def test_several_sets_ask_for_a_key(tmp_path) -> None:
    content = {"generator": weights(0), "discriminator": weights(1)}
    with pytest.raises(BnfoldError, match=r"under 'generator', 'discriminator'; choose with --key$"):
        load(tmp_path, content)
    assert equal(load(tmp_path, content, key="discriminator").tensors, weights(1))
    content = {"state_dict": weights(0), "state_dict_ema": weights(1)}
    with pytest.raises(BnfoldError, match=r"'state_dict', 'state_dict_ema'; choose with --key, or --ema$"):
        load(tmp_path, content)
    assert equal(load(tmp_path, content, key="state_dict").tensors, weights(0))
    assert equal(load(tmp_path, content, key="state_dict_ema").tensors, weights(1))
    same = {"model": weights(0), "model_ema": weights(0)}
    assert equal(load(tmp_path, same).tensors, weights(0))


def test_a_key_leads_as_deep_as_it_says(tmp_path) -> None:
    content = {"run": {"nets": {"a.b": {"state_dict": weights(2)}}}, "model": weights(0)}
    assert equal(load(tmp_path, content, key="run.nets.a.b.state_dict").tensors, weights(2))
    joined = {f"generator.{k}": v for k, v in weights(3).items()} | {f"critic.{k}": v for k, v in weights(4).items()}
    assert equal(load(tmp_path, {"state_dict": joined}, key="state_dict.generator").tensors, weights(3))
    for wrong in ("nowhere", "model.nowhere", "run.nets", "model.0.weight.1"):
        with pytest.raises(BnfoldError, match=f"no weights under --key {wrong}; it holds .*'model'"):
            load(tmp_path, content, key=wrong)
    with pytest.raises(BnfoldError, match="leave --ema out"):
        load(tmp_path, content, key="model", ema=True)


@pytest.mark.parametrize(
    "place",
    [
        ("state_dict_ema",),
        ("model_ema",),
        ("ema",),
        ("ema", "state_dict"),
        ("ema", "module"),
        ("ema_state_dict",),
        ("params_ema",),
        ("callbacks", "EMA", "shadow"),
        ("swa_model",),
    ],
)
def test_averaged_weights_under_their_usual_names(tmp_path, place) -> None:
    content = weights(1)
    for key in reversed(place):
        content = {key: content}
    assert equal(load(tmp_path, {"model": weights(0), **content}, ema=True).tensors, weights(1))


def test_averaged_weights_inside_one_state_dict(tmp_path) -> None:
    joined = {f"{where}.{key}": value for where, state in (("online_model", weights(0)), ("ema_model", weights(1)))
              for key, value in state.items()}  # fmt: skip
    assert equal(load(tmp_path, joined, ema=True).tensors, weights(1))
    rest = load(tmp_path, joined)
    assert {name.partition(".")[0] for name in rest.tensors} == {"online_model"}
    assert "--ema takes them" in rest.notes[0]


def test_pytorchs_own_averaging(tmp_path) -> None:
    torch.manual_seed(5)
    averaged = AveragedModel(plain(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    state = averaged.module.state_dict()
    assert equal(load(tmp_path, averaged.state_dict(), ema=True).tensors, state)
    assert equal(load(tmp_path, averaged.state_dict()).tensors, state)
    both = {"model": weights(0), "averaged": averaged.state_dict()}
    assert equal(load(tmp_path, both, ema=True).tensors, state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_averaged_parameters_are_completed_with_the_buffers_of_the_plain_weights(tmp_path, prefix) -> None:
    module = plain()
    parameters = {f"{prefix}{name}": tensor.detach() + 1 for name, tensor in module.named_parameters()}
    loaded = load(tmp_path, {"model": module.state_dict(), "ema": parameters}, ema=True)
    assert loaded.tensors.keys() == module.state_dict().keys()
    assert torch.equal(loaded.tensors["0.weight"], module[0].weight + 1)
    assert torch.equal(loaded.tensors["1.running_mean"], module[1].running_mean)
    assert "lacks 6 tensors" in loaded.notes[0]
    assert "bnfold recalibrate" in loaded.notes[0]


def test_no_averaged_weights_and_averaged_weights_without_names(tmp_path) -> None:
    with pytest.raises(BnfoldError, match="no averaged weights, only 'model'; leave --ema out"):
        load(tmp_path, {"model": weights()}, ema=True)
    listed = {"model": weights(), "ema": {"decay": 0.9, "shadow_params": list(weights().values())}}
    with pytest.raises(BnfoldError, match=r"list without names.*ema\.copy_to"):
        load(tmp_path, listed, ema=True)
    with pytest.raises(BnfoldError, match=r"'ema', 'swa'; choose with --key$"):
        load(tmp_path, {"model": weights(), "ema": weights(1), "swa": weights(2)}, ema=True)


def test_a_module_under_ema_where_it_is_trusted(tmp_path) -> None:
    torch.manual_seed(0)
    content = {"model": None, "ema": nn.Sequential(nn.Linear(2, 3)).half(), "updates": 7}
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="whole object"):
        load_checkpoint(tmp_path / "m.pt")
    assert isinstance(load_checkpoint(tmp_path / "m.pt", trust=True).module, nn.Sequential)
