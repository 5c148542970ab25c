"""Matches the names of a checkpoint to those of an architecture: prefixes of one side, and other names for the same
weights. Where they do not fit, the error lists the differences."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch.nn.parameter import is_lazy

from fold.errors import BnfoldError, short
from fold.sources.architecture.mismatch import likely_cause
from fold.sources.checkpoint.checkpoint import Checkpoint

LISTED = 5
WRAPPING = ("_orig_mod", "module")
"""Parts of names that torch.compile and DataParallel insert, for the model or for a submodule."""
RENAMED = (
    # weight_norm and spectral_norm as hooks and as parametrisations hold the same numbers
    (r"(.*\.|)(\w+)_g", r"\1parametrizations.\2.original0"),
    (r"(.*\.|)(\w+)_v", r"\1parametrizations.\2.original1"),
    (r"(.*\.|)(\w+)_orig", r"\1parametrizations.\2.original"),
    (r"(.*\.|)(\w+)_u", r"\1parametrizations.\2.0._u"),
    (r"(.*\.|)(\w+)_v", r"\1parametrizations.\2.0._v"),
    (r"(.*\.|)parametrizations\.(\w+)\.original0", r"\1\2_g"),
    (r"(.*\.|)parametrizations\.(\w+)\.original1", r"\1\2_v"),
    (r"(.*\.|)parametrizations\.(\w+)\.original", r"\1\2_orig"),
    (r"(.*\.|)parametrizations\.(\w+)\.0\._([uv])", r"\1\2_\3"),
)

State = Mapping[str, torch.Tensor]


def fit(checkpoint: Checkpoint, arch: str, expected: State, parameters: Iterable[str] = ()) -> Checkpoint:
    """The checkpoint with the names of the architecture, whose state_dict is `expected`.

    `parameters` are the names of its arguments, for the error message. Raises `BnfoldError` that lists missing and
    unexpected names and different shapes, with the likely cause.
    """
    own = {part for name in expected for part in name.split(".")}
    names = {name: _unwrapped(name, own) for name in checkpoint.tensors}
    prefix = _prefix(checkpoint, {new: checkpoint.tensors[old] for old, new in names.items()}, expected)
    inside = {old: new.removeprefix(prefix) for old, new in names.items() if new.startswith(prefix)}
    inside = {old: _renamed(new, expected) for old, new in inside.items()}
    fitted = replace(
        checkpoint,
        tensors={new: checkpoint.tensors[old] for old, new in inside.items()},
        places={new: checkpoint.places[old] for old, new in inside.items() if old in checkpoint.places},
        notes=(*checkpoint.notes, *_aside(checkpoint, prefix, inside), *_rounded(checkpoint, inside)),
    )
    _check(fitted, arch, expected, tuple(parameters))
    return fitted


def _unwrapped(name: str, own: set[str]) -> str:
    """The name without the parts that wrappers insert, unless the architecture has such a part."""
    return ".".join(part for part in name.split(".") if part not in WRAPPING or part in own)


def _prefix(checkpoint: Checkpoint, given: State, expected: State) -> str:
    """The prefix whose removal makes most names fit; empty if removing none fits as many."""
    counts: Counter[str] = Counter()
    for name, tensor in given.items():
        parts = name.split(".")
        for depth in range(len(parts)):
            rest = ".".join(parts[depth:])
            if rest in expected:
                fits = is_lazy(expected[rest]) or expected[rest].shape == tensor.shape
                counts[".".join([*parts[:depth], ""])] += 2 if fits else 1
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    if counts[best] <= counts[""] or counts[best] < len(expected):  # fewer than half of the names fit
        return ""
    rivals = [prefix for prefix in counts if counts[prefix] == counts[best] and prefix.count(".") == best.count(".")]
    if len(rivals) > 1:
        found = " and ".join(repr(prefix.removesuffix(".")) for prefix in sorted(rivals))
        raise BnfoldError(f"{checkpoint.path}: fits the architecture equally under {found}; choose with --key")
    return best


def _renamed(name: str, expected: State) -> str:
    if name in expected:
        return name
    for pattern, replacement in RENAMED:
        match = re.fullmatch(pattern, name)
        if match and match.expand(replacement) in expected:
            return match.expand(replacement)
    return name


def _aside(checkpoint: Checkpoint, prefix: str, inside: Mapping[str, str]) -> Iterable[str]:
    others = [name for name in checkpoint.tensors if name not in inside]
    if others:
        yield f"ignored {len(others)} tensors outside {prefix!r}: {_some(others)}"


def _rounded(checkpoint: Checkpoint, inside: Iterable[str]) -> Iterable[str]:
    wide = sum(checkpoint.tensors[name].dtype == torch.float64 for name in inside)
    if wide:
        yield f"rounded {wide} tensors from float64 to float32, the precision of the served graph"


def _check(checkpoint: Checkpoint, arch: str, expected: State, parameters: tuple[str, ...]) -> None:
    given, tied = checkpoint.tensors, _tied(expected)
    # Checkpoints from before PyTorch 0.4.1 have no batch count, and eval mode does not need it.
    missing = [
        name
        for name, tensor in expected.items()
        if isinstance(tensor, torch.Tensor)
        and name not in given
        and not name.endswith("num_batches_tracked")
        and not any(other in given for other in tied.get(name, ()))
    ]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        name
        for name, tensor in expected.items()
        if name in given and not is_lazy(tensor) and given[name].shape != tensor.shape
    ]
    told = [f"{name} is {list(given[name].shape)} in the checkpoint, {list(expected[name].shape)} in the architecture"
            for name in shapes]  # fmt: skip
    problems = [
        f"{len(keys)} {what}: {_some(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", told))
        if keys
    ]
    if problems:
        cause = likely_cause(given, expected, missing, unexpected, shapes, parameters)
        raise BnfoldError(f"{checkpoint.path}: does not fit --arch {arch}: {'; '.join(problems)}; {cause}")
    for name, tensor in expected.items():
        floats = isinstance(tensor, torch.Tensor) and tensor.dtype.is_floating_point
        if name in given and floats and not given[name].is_floating_point():
            raise BnfoldError(
                f"{checkpoint.path}: {name} is {given[name].dtype} in the checkpoint, expected floats; if the model is "
                "quantised, fold the float model that it was made from"
            )
    for name, others in tied.items():
        for other in others:
            if name in given and other in given and not torch.equal(given[name], given[other]):
                raise BnfoldError(
                    f"{checkpoint.path}: {name} and {other} differ, but are one tensor in --arch {arch}; "
                    "check --arch-arg"
                )


def _tied(expected: State) -> dict[str, list[str]]:
    """For each name, the other names of the same tensor."""
    by_tensor: dict[tuple[int, torch.Size], list[str]] = {}
    for name, tensor in expected.items():
        if isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and tensor.numel():
            by_tensor.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    return {name: [other for other in names if other != name] for names in by_tensor.values() for name in names}


def _some(names: list[str]) -> str:
    return f"{', '.join(map(short, names[:LISTED]))}{', …' if len(names) > LISTED else ''}"
