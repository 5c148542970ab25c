"""Finds the weights in a checkpoint: their keys, and whether they are plain or averaged over training (EMA, SWA)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fold.errors import BnfoldError, short
from fold.sources.checkpoint.limits import refuse_expanded

USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)")
"""In a key: `ema`, `model_ema`, `state_dict_ema`, `ema_state_dict`, `params_ema`, `swa_model`, `averaged_model`, … ."""
AVERAGED_INSIDE = ("ema_model", "model_ema", "swa_model", "averaged_model")
"""Names of averaged copies inside one state_dict. `ema` alone is also a name of layers."""
NO_WEIGHTS = re.compile(r"optim|scheduler|scaler|hyper_?param|hparams|loops|criterion|loss|rng|_extra_state")
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put before every name."""
CURRENT = "current_model_state"
"""Where Lightning's WeightAveraging puts the plain weights. Its `state_dict` has the averaged ones then."""
COUNTERS = ("n_averaged",)
"""Counters that `torch.optim.swa_utils.AveragedModel` stores beside the weights."""
DEPTH = 3
LISTED = 8

Place = tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """Tensors by name, their places in the file, and their module if the file holds a whole one."""

    place: Place
    tensors: dict[str, torch.Tensor]
    places: dict[str, Place]
    module: nn.Module | None = None
    notes: tuple[str, ...] = ()
    beside_plain: bool = False
    """Averaged, says not its own key but that of the plain weights beside it (`CURRENT`)."""

    @property
    def averaged(self) -> bool:
        return (
            self.beside_plain
            or any(AVERAGED.search(key.lower()) for key in self.place)
            or any(name in COUNTERS for name in self.tensors)
        )

    @property
    def key(self) -> str:
        return ".".join(self.place)


def find_weights(path: Path, content: Any, *, key: str | None = None, ema: bool = False) -> Weights:
    """The weights in the content of a file. Their names may keep a prefix, which `fit` removes.

    Raises `BnfoldError` for a file without weights, for a `key` without weights, and for several sets if neither `key`
    nor `ema` selects one.
    """
    if key is not None and ema:
        raise BnfoldError("--key already selects the weights; leave --ema out, or select the averaged ones by --key")
    if not isinstance(content, Mapping | nn.Module):
        raise BnfoldError(f"{path}: holds a {type(content).__name__}, expected a state_dict; save model.state_dict()")
    found = [
        replace(one, beside_plain=True) if one.place == ("state_dict",) and _has_current(content) else one
        for one in _candidates(content)
    ]
    for one in found:
        refuse_expanded(path, one.tensors)
    if key is not None:
        chosen = _by_key(path, content, key)
    elif not found:
        raise BnfoldError(f"{path}: holds no tensors, expected a state_dict; save model.state_dict()")
    else:
        chosen = _averaged(path, content, found) if ema else _usual(path, found)
    whole = _completed(chosen, found) if chosen.averaged else chosen
    refuse_unusual(path, whole.tensors)
    return _without_fixed(whole)


def refuse_unusual(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `BnfoldError` for a tensor that is no array of numbers."""
    for name, tensor in tensors.items():
        what = _unusual(tensor)
        if what is not None:
            raise BnfoldError(f"{path}: {short(name)} is {what}")


def _unusual(tensor: torch.Tensor) -> str | None:
    if tensor.is_meta:
        return "a meta tensor, which has no values; save the model after its weights were loaded"
    if tensor.is_quantized:
        return "a quantised tensor; fold the float model that it was made from"
    if tensor.layout != torch.strided:
        return "a sparse tensor; save it as tensor.to_dense()"
    return "a nested tensor; expected plain arrays of numbers" if tensor.is_nested else None


def _candidates(content: Any, place: Place = ()) -> Iterator[Weights]:
    """Every mapping of names to tensors, and every module, without those of optimisers, schedulers and losses."""
    if isinstance(content, nn.Module):
        yield _of_module(content, place)
        return
    if not isinstance(content, Mapping):
        return
    own = _of_mapping(content, place)
    if any(tensor.ndim for tensor in own.tensors.values()):  # mappings of 0-d tensors are counters and scores
        yield own
    if len(place) < DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and not NO_WEIGHTS.search(key.lower()):
                yield from _candidates(value, (*place, key))


def _of_mapping(content: Mapping[Any, Any], place: Place) -> Weights:
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    return Weights(place, tensors, {name: (*place, name) for name in tensors})


def _of_module(module: nn.Module, place: Place) -> Weights:
    """The weights of a whole module, without the wrappers of DataParallel, torch.compile and averaging."""
    while type(module).__name__ in ("DataParallel", "DistributedDataParallel", "AveragedModel", "OptimizedModule"):
        module = getattr(module, "_orig_mod", None) or module.module  # type: ignore[assignment]
    return Weights(place, module.state_dict(), {}, module)


def _usual(path: Path, found: list[Weights]) -> Weights:
    """The only set under a usual name, else the only set; for a bare state_dict, the content itself."""
    for one in found:
        if one.beside_plain:
            note = f"took the averaged weights under {one.key!r}, as Lightning does; --key {CURRENT} has the plain ones"
            return replace(one, notes=(note,))
    plain = [one for one in found if not one.averaged]
    inner = [one for one in plain if one.place]
    named = [one for one in inner if one.place[0] in USUAL]
    sets = _distinct(named or inner or plain)
    averaged = _distinct([one for one in found if one.averaged])
    if len(sets) == 1 and not [one for one in averaged if not _same(one, sets[0])]:
        return _inside(sets[0])
    if not sets and len(averaged) == 1:
        return replace(averaged[0], notes=(f"took the averaged weights under {averaged[0].key!r}, the only ones",))
    raise _several(path, [*sets, *averaged])


def _has_current(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(CURRENT), Mapping)


def _inside(weights: Weights) -> Weights:
    """The weights without an averaged copy in the same state_dict."""
    copies = {name for name in weights.tensors if name.partition(".")[0] in AVERAGED_INSIDE}
    if not copies or len(copies) == len(weights.tensors):
        return weights
    prefix = next(iter(copies)).partition(".")[0]
    note = f"ignored {len(copies)} averaged weights under {prefix!r}; --ema takes them"
    return _only(weights, [name for name in weights.tensors if name not in copies], notes=(note,))


def _averaged(path: Path, content: Any, found: list[Weights]) -> Weights:
    sets = _distinct([one for one in found if one.averaged])
    if len(sets) == 1:
        return sets[0]
    if sets:
        raise _several(path, sets)
    for one in found:
        for prefix in (*AVERAGED_INSIDE, "ema"):
            names = [name for name in one.tensors if name.startswith(f"{prefix}.")]
            if names and len(names) < len(one.tensors):
                return _under(one, prefix, names)
    _refuse_list(path, content)
    raise BnfoldError(
        f"{path}: holds no averaged weights, only {_listed(found)}; leave --ema out, or name them by --key"
    )


def _refuse_list(path: Path, content: Any) -> None:
    """Refuse the format of the package torch_ema: tensors without names, in the order of an optimiser's parameters."""
    entries = content.values() if isinstance(content, Mapping) else ()
    for entry in (content, *entries):
        if isinstance(entry, Mapping) and isinstance(entry.get("shadow_params"), Sequence):
            raise BnfoldError(
                f"{path}: its averaged weights are a list without names ('shadow_params'); write them into the model "
                "(ema.copy_to(model.parameters())) and save model.state_dict()"
            )


def _by_key(path: Path, content: Any, key: str) -> Weights:
    """The weights under the dotted `key`, whose end may be a prefix of names in a state_dict, such as `generator`."""
    place: Place = ()
    rest, at = key, content
    while rest and isinstance(at, Mapping):
        step = next((name for name in _heads(rest) if name in at), None)
        if step is None:
            break
        place, rest, at = (*place, step), rest[len(step) + 1 :], at[step]
    if isinstance(at, nn.Module) and not rest:
        return _of_module(at, place)
    if isinstance(at, Mapping):
        weights = _of_mapping(at, place)
        names = [name for name in weights.tensors if name.startswith(f"{rest}.")] if rest else list(weights.tensors)
        if names:
            return _under(weights, rest, names) if rest else weights
    here = list(_candidates(content))
    there = f"it holds {_listed(here)}" if here else "it holds no tensors"
    raise BnfoldError(f"{path}: has no weights under --key {key}; {there}")


def _heads(key: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`, because keys may contain dots."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def _completed(chosen: Weights, found: list[Weights]) -> Weights:
    """Averaged parameters, completed by the buffers of the plain weights if averaging left them out."""
    plain = _distinct([one for one in found if not one.averaged and one.place != chosen.place])
    if len(plain) != 1:
        return chosen
    here, there = _fixed_prefix(chosen.tensors), _fixed_prefix(plain[0].tensors)
    names = {name.removeprefix(there): tensor for name, tensor in plain[0].tensors.items()}
    missing = {
        here + name: tensor
        for name, tensor in names.items()
        if here + name not in chosen.tensors and name not in COUNTERS
    }
    shared = sum(here + name in chosen.tensors for name in names)
    if not missing or not shared or chosen.module is not None:
        return chosen
    note = (
        f"{chosen.key!r} lacks {len(missing)} tensors, such as {next(iter(missing))}, taken from "
        f"{plain[0].key or 'the plain weights'!r}; statistics of other weights are inaccurate: bnfold recalibrate "
        "recomputes them"
    )
    places = {name: (*chosen.place, name) for name in missing}
    return replace(
        chosen,
        tensors={**chosen.tensors, **missing},
        places={**chosen.places, **places},
        notes=(*chosen.notes, note),
    )


def _distinct(found: list[Weights]) -> list[Weights]:
    """The first of each group of sets with equal tensors."""
    distinct: list[Weights] = []
    for one in found:
        if not any(_same(one, other) for other in distinct):
            distinct.append(one)
    return distinct


def _same(one: Weights, other: Weights) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        _equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if _unusual(one) is not None or _unusual(other) is not None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def _without_fixed(weights: Weights) -> Weights:
    """The weights without the prefixes and counters of module wrappers."""
    names = [name for name in weights.tensors if name not in COUNTERS]
    return _under(weights, _fixed_prefix(weights.tensors).removesuffix("."), names)


def _fixed_prefix(names: Mapping[str, torch.Tensor]) -> str:
    """`module.`, `_orig_mod.` or both, in any order; empty where not every name begins so."""
    prefix, layers = "", [name for name in names if name not in COUNTERS]
    while layers:
        added = next((one for one in PREFIXES if all(name.startswith(prefix + one) for name in layers)), None)
        if added is None:
            break
        prefix += added
    return prefix


def _only(weights: Weights, names: list[str], notes: tuple[str, ...] = ()) -> Weights:
    tensors = {name: weights.tensors[name] for name in names}
    places = {name: weights.places[name] for name in names if name in weights.places}
    return replace(weights, tensors=tensors, places=places, notes=(*weights.notes, *notes))


def _under(weights: Weights, prefix: str, names: list[str]) -> Weights:
    """The named tensors, without the prefix (given without its dot)."""
    if not prefix:
        return _only(weights, names)
    cut, kept = len(prefix) + 1, _only(weights, names)
    return replace(
        kept,
        tensors={name[cut:]: tensor for name, tensor in kept.tensors.items()},
        places={name[cut:]: place for name, place in kept.places.items()},
    )


def _several(path: Path, sets: list[Weights]) -> BnfoldError:
    ema = ", or --ema" if any(one.averaged for one in sets) and any(not one.averaged for one in sets) else ""
    return BnfoldError(f"{path}: holds weights under {_listed(sets)}; choose with --key{ema}")


def _listed(sets: list[Weights]) -> str:
    names = [repr(short(one.key)) if one.place else "the file's top" for one in sets]
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
