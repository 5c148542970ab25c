"""A checkpoint's names against an architecture's, and what is told where they do not fit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fold.errors import BnfoldError
from fold.sources.architecture.fit import fit
from fold.sources.checkpoint.checkpoint import Checkpoint
from support.loadable import plain, wrapped


def state(module: nn.Module | None = None, **arguments: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict((module or plain(**arguments)).state_dict())


def fitted(given: dict[str, torch.Tensor], module: nn.Module | None = None, parameters=("channels", "num_classes")):
    places = {name: (name,) for name in given}
    expected = (module or plain()).state_dict()
    return fit(Checkpoint(Path("m.pt"), given, places=places), "a:b", expected, parameters)


def refusal(given: dict[str, torch.Tensor], module: nn.Module | None = None, **options) -> str:
    with pytest.raises(BnfoldError) as caught:
        fitted(given, module, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "a.b.", "module.student._orig_mod."])
def test_one_prefix_that_makes_them_fit_is_taken_off(prefix) -> None:
    given = {prefix + name: tensor for name, tensor in state().items()}
    result = fitted(given)
    assert result.tensors.keys() == plain().state_dict().keys()
    assert result.places["1.bias"] == (f"{prefix}1.bias",)
    assert result.notes == ()


def test_a_wrapper_inside_the_names_is_taken_off() -> None:
    given = {name.replace("4.", "4._orig_mod.module.", 1): tensor for name, tensor in state().items()}
    assert fitted(given).tensors.keys() == plain().state_dict().keys()
    module = nn.ModuleDict({"module": plain()})  # here it is a name of the architecture's own
    assert fitted(dict(module.state_dict()), module).tensors.keys() == module.state_dict().keys()


def test_what_lightning_keeps_beside_the_model_is_told_and_left() -> None:
    given = {f"model.{name}": tensor for name, tensor in state().items()}
    given |= {"loss.weight": torch.ones(4), "accuracy.total": torch.tensor(3)}
    result = fitted(given)
    assert result.tensors.keys() == plain().state_dict().keys()
    assert result.notes == ("ignored 2 tensors outside 'model.': loss.weight, accuracy.total",)
    assert "1 unexpected: aux.weight" in refusal({**given, "model.aux.weight": torch.ones(4)})


def test_two_prefixes_that_fit_alike_ask_for_a_key() -> None:
    given = {f"{where}.{name}": tensor for where in ("teacher", "student") for name, tensor in state().items()}
    assert "equally under 'student' and 'teacher'; choose with --key" in refusal(given)


def test_old_checkpoints_do_not_count_batches() -> None:
    given = {name: tensor for name, tensor in state().items() if not name.endswith("num_batches_tracked")}
    assert fitted(given).tensors.keys() == given.keys()


def test_rounding_is_told_and_widening_is_none() -> None:
    assert fitted(state(plain().half())).notes == ()
    (note,) = fitted(state(plain().double())).notes
    assert note.startswith("rounded 14 tensors from float64 to float32")


def test_what_is_missing_unexpected_and_misshapen_is_listed() -> None:
    given = state()
    del given["0.weight"]
    given["left.over"] = torch.ones(1)
    given["3.weight"] = torch.ones(7, 7)
    message = refusal(given)
    misshapen = "1 of another shape: 3.weight is [7, 7] in the checkpoint, [6, 5, 3, 3] in the architecture"
    for words in ("m.pt: does not fit --arch a:b", "1 missing: 0.weight", "1 unexpected: left.over", misshapen):
        assert words in message


def folded(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    module = plain()
    module[1] = module[4] = nn.Identity()
    del given
    return dict(module.state_dict())


def without_batchnorm_bias() -> nn.Module:
    module = plain()
    module[0] = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    module[3] = nn.Conv2d(5, 6, 3, bias=False)
    return module


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: state(num_classes=9), "another number of classes: --arch-arg num_classes=9"),
        (lambda: state(in_chans=1), "another number of input channels: --arch-arg in_channels=1"),
        (lambda: {f"x{k}": v for k, v in state().items()}, "almost no name is in both"),
        (lambda: {**state(), "8.weight": torch.ones(2)}, "the checkpoint has more layers: check the depth"),
        (lambda: {k: v for k, v in state().items() if k[0] != "7"}, "the checkpoint has fewer layers"),
        (lambda: {**state(), "0._packed_params.dtype": torch.ones(1)}, "is of a quantised model"),
        (lambda: dict(plain().named_parameters()), "only parameters: save model.state_dict()"),
        (lambda: {**{k: v for k, v in state().items() if k != "0.weight"}, "0.weight_g": torch.ones(5, 1, 1, 1),
                  "0.weight_v": torch.ones(5, 3, 3, 3)}, "the checkpoint has weight_norm (0.weight_g)"),
        (lambda: {**{k: v for k, v in state().items() if k != "0.weight"}, "0.weight_orig": torch.ones(5, 3, 3, 3),
                  "0.weight_mask": torch.ones(5, 3, 3, 3)}, "torch.nn.utils.prune.remove"),
    ],
)  # fmt: skip
def test_the_likely_cause(given, words) -> None:
    assert words in refusal(given())


def test_the_likely_cause_is_that_batchnorm_was_folded_already() -> None:
    assert "BatchNorm was already folded: 1.running_mean is missing and 0.bias" in refusal(
        folded(state()), without_batchnorm_bias()
    )


def test_the_likely_cause_is_the_architectures_own_prefix_or_width() -> None:
    assert "the architecture names its layers model.…" in refusal(state(), wrapped())
    wide = nn.Sequential(nn.Conv2d(3, 10, 1, bias=False), nn.BatchNorm2d(10))
    thin = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5))
    assert "2 times as wide: check the width" in refusal(dict(wide.state_dict()), thin)
    assert "classes: --arch-arg n_classes=9" in refusal(state(num_classes=9), parameters=("n_classes",))
