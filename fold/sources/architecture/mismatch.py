"""The most likely reason why a checkpoint does not fit an architecture."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch.nn.parameter import is_lazy

CLASS_ARGUMENTS = ("num_classes", "n_classes", "classes", "nb_classes", "class_count", "num_labels", "out_features")
CHANNEL_ARGUMENTS = ("in_chans", "in_channels", "input_channels", "num_channels", "channels_in", "n_channels")

State = Mapping[str, torch.Tensor]


def likely_cause(
    given: State,
    expected: State,
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Sequence[str],
    parameters: Sequence[str] = (),
) -> str:
    """One clause: the cause, and what to do.

    `missing` and `unexpected` are names, `shapes` those of tensors whose shape differs, and `parameters` the names of
    the architecture's arguments.
    """
    names = (
        _quantised(given, unexpected)
        or _reparametrised(missing, unexpected)
        or _folded(missing, unexpected)
        or _prefixed(given, expected, missing)
        or _foreign(given, expected)
        or _other_depth(missing, unexpected)
    )
    if names:
        return names
    known = [name for name in shapes if not is_lazy(expected[name])]
    sizes = {name: (tuple(given[name].shape), tuple(expected[name].shape)) for name in known}
    return _class_count(sizes, given, parameters) or _channels(sizes, parameters) or _width(sizes) or "check --arch-arg"


def _quantised(given: State, unexpected: Sequence[str]) -> str | None:
    signs = ("_packed_params", ".zero_point", "fake_quant", "activation_post_process")
    if any(sign in name for name in unexpected for sign in signs) or any(t.is_quantized for t in given.values()):
        return "the checkpoint is of a quantised model: fold the float model that it was made from"
    return None


def _reparametrised(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    for sides, place, other in ((unexpected, "checkpoint", "architecture"), (missing, "architecture", "checkpoint")):
        for name in sorted(sides, key=lambda name: not name.endswith("_mask")):
            if name.endswith("_mask"):
                what, remedy = "pruning", "torch.nn.utils.prune.remove"
            elif name.endswith(("_g", ".original0")):
                what, remedy = "weight_norm", "remove_weight_norm or remove_parametrizations"
            elif name.endswith(("_orig", ".original")):
                what, remedy = (
                    "spectral_norm or another parametrisation",
                    "remove_spectral_norm or remove_parametrizations",
                )
            else:
                continue
            return f"the {place} has {what} ({name}), the {other} does not: call {remedy} on the model that has it"
    return None


def _folded(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    statistics = [name for name in missing if name.endswith(("running_mean", "running_var"))]
    biases = [name for name in unexpected if name.endswith("bias")]
    if statistics and biases and len(biases) == len(unexpected):
        return (
            f"BatchNorm was already folded: {statistics[0]} is missing and {biases[0]} was added; "
            "use the checkpoint from before folding"
        )
    if statistics and not unexpected and all(".running_" in f".{name}" for name in missing):
        return "the checkpoint has only parameters: save model.state_dict(), which holds BatchNorm's statistics as well"
    return None


def _prefixed(given: State, expected: State, missing: Sequence[str]) -> str | None:
    """The names fit once the first part of the architecture's names is removed."""
    for name in missing:
        head, _, rest = name.partition(".")
        inner = [key for key in expected if key.startswith(f"{head}.")]
        if rest in given and len(inner) > len(expected) / 2:
            return f"the architecture names its layers {head}.…: let --arch name a factory for {head!r} alone"
    return None


def _foreign(given: State, expected: State) -> str | None:
    if len(given.keys() & expected.keys()) < min(len(given), len(expected)) / 10:
        return "almost no name is in both: check --arch, or name the weights with --key"
    return None


def _other_depth(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """Only whole layers, with a number in their names, are missing or unexpected."""
    for names, more in ((unexpected, "more"), (missing, "fewer")):
        others = missing if names is unexpected else unexpected
        if names and not others and all(re.search(r"(^|\.|[a-z_])\d+\.", name) for name in names):
            return f"the checkpoint has {more} layers: check the depth in --arch-arg"
    return None


def _class_count(
    sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], given: State, parameters: Sequence[str]
) -> str | None:
    """Only the last layer differs, and only in its number of outputs."""
    layers = {name.rpartition(".")[0] for name in sizes}
    weights = [name for name in given if given[name].ndim > 1]
    if len(layers) != 1 or not weights or weights[-1].rpartition(".")[0] not in layers:
        return None
    (have, want) = next(iter(sizes.values()))
    if have[1:] != want[1:]:
        return None
    argument = next((name for name in CLASS_ARGUMENTS if name in parameters), "num_classes")
    return f"another number of classes: --arch-arg {argument}={have[0]}"


def _channels(sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], parameters: Sequence[str]) -> str | None:
    """Only one weight differs, and only in its number of inputs."""
    if len(sizes) != 1:
        return None
    (have, want) = next(iter(sizes.values()))
    if len(have) < 2 or len(have) != len(want) or have[0] != want[0] or have[2:] != want[2:]:
        return None
    argument = next((name for name in CHANNEL_ARGUMENTS if name in parameters), "in_channels")
    return f"another number of input channels: --arch-arg {argument}={have[1]}"


def _width(sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str | None:
    ratios = {
        have[0] / want[0] for have, want in sizes.values() if have and want and len(have) == len(want) and want[0]
    }
    ratios.discard(1.0)
    if len(sizes) > 1 and len(ratios) == 1:
        return f"its layers are {next(iter(ratios)):g} times as wide: check the width in --arch-arg"
    return None
