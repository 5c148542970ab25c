"""Recomputes BatchNorm's running statistics over a data set, and writes a checkpoint with them.

If the running statistics are unreliable, recompute them: training estimates them by a moving average, which is a poor
estimate with small batches, or when weights are averaged after training. New statistics change what the network
computes, so a fold never does this. The new checkpoint is folded and proven like any other.
"""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fold.arrays import Arrays
from fold.artifact import sha256
from fold.errors import BnfoldError, first_line
from fold.inputs import DataSet, open_dataset, read_preprocessing
from fold.recalibration.population import (
    Batch,
    LayerReachedError,
    gather_in_one_pass,
    gather_layer_by_layer,
    in_float64,
    layers_with_statistics,
    reached_layers,
)
from fold.sources import Checkpoint, Source, load_module, write_checkpoint

RECORD = "recalibrated"
"""Key in a checkpoint's `bnfold` entry that describes the data over which its statistics were computed."""
LAYER_BY_LAYER, ONE_PASS = "layer by layer", "one pass"


@dataclass(frozen=True)
class LayerChange:
    """How much one layer's statistics changed.

    `values` is how many numbers of each channel were used; for an InstanceNorm, how many samples. `mean_shift` is the
    largest |Δμ| of a channel in units of its old √(σ² + ε). `variance_ratio` is the smallest and the largest ratio of
    new to old σ² + ε. Both are None where the old statistics were not finite, or the variance was negative.
    """

    name: str
    channels: int
    values: int
    mean_shift: float | None
    variance_ratio: tuple[float, float] | None


@dataclass(frozen=True)
class Recalibration:
    """The result: the data that was used, and how much each layer changed.

    `recalibrated` describes the data. `unreached` are layers that a forward pass in eval mode does not call; they are
    unchanged. `outputs_moved` is the largest change of an output over the first batch, relative to the largest output,
    or None where that is not finite. `notes` say, a line each, what was decided while the source was read.
    """

    checkpoint: Path
    recalibrated: dict[str, Any]
    layers: tuple[LayerChange, ...]
    unreached: tuple[str, ...]
    outputs_moved: float | None
    notes: tuple[str, ...]
    seconds: float
    arch_file: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        arch_file = None if self.arch_file is None else str(self.arch_file)
        return {**asdict(self), "checkpoint": str(self.checkpoint), "arch_file": arch_file}


def recalibrate(
    source: Source,
    data: Path,
    out: Path,
    *,
    batch_size: int = 256,
    seed: int = 0,
    layer_by_layer: bool = False,
    preprocessing: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda step, steps, layer: None,
) -> Recalibration:
    """Compute the statistics of a checkpoint's BatchNorms over `data` and write the checkpoint `out` with them.

    `data` is an `.npz` with arrays by the names of `forward`'s arguments, or a folder of such files and images.
    `progress` is called after each batch with the number of batches done, the number of all, and the layer's name.
    Raises `BnfoldError` for bad input; nothing is written then.
    """
    started = time.perf_counter()
    if source.path.suffix in (".pt2", ".onnx"):
        raise BnfoldError(f"{source.path}: recalibration takes a state_dict and its --arch, since it changes weights")
    loaded = load_module(source)
    _check_target(loaded.checkpoint, out)
    checkpoint, module = loaded.checkpoint, loaded.module.double().eval()
    signature = _Signature(module)
    how = read_preprocessing(preprocessing, checkpoint.metadata, signature.names)
    dataset = open_dataset(data, how, batch_size=batch_size, seed=seed, check=signature.check)
    before = _statistics(module)
    if not before:
        raise BnfoldError(f"{source.path}: has no BatchNorm with running statistics, so there is nothing to compute")
    with in_float64():
        values, outputs_moved = _gather(module, signature, dataset, layer_by_layer, progress)
    after = _statistics(module)
    record = _record(dataset, layer_by_layer)
    changed = _changed(checkpoint, module, {name: after[name] for name in values}, len(dataset.sizes))
    metadata = {**checkpoint.metadata, RECORD: record}
    write_checkpoint(replace(checkpoint, metadata=metadata), changed, out)
    epsilons = {name: layer.eps for name, layer in layers_with_statistics(module).items()}
    return Recalibration(
        out,
        record,
        tuple(_layer_change(name, values[name], before[name], after[name], epsilons[name]) for name in values),
        tuple(name for name in before if name not in values),
        outputs_moved,
        checkpoint.notes,
        time.perf_counter() - started,
        loaded.arch_file,
    )


class _Signature:
    """The arguments of a module's `forward`; passes arrays to them by name."""

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(module.forward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.module = module
        self.names = [p.name for p in named]
        self.required = [p.name for p in named if p.default is p.empty]

    def check(self, arrays: Arrays) -> None:
        """Raises `BnfoldError` for arrays that do not match the arguments. A single array may have any name."""
        if len(arrays) == 1 and len(self.required) <= 1:
            return
        for name in arrays:
            if name not in self.names:
                raise BnfoldError(f"input {name!r}: the model has no such input; it takes {', '.join(self.names)}")
        for name in self.required:
            if name not in arrays:
                raise BnfoldError(f"input {name!r}: missing; the model takes {', '.join(self.required)}")

    def forward(self, batch: Batch) -> Any:
        if len(batch) == 1 and len(self.required) <= 1 and next(iter(batch)) not in self.names:
            return self.module(*batch.values())
        return self.module(**batch)


def _gather(
    module: nn.Module,
    signature: _Signature,
    dataset: DataSet,
    layer_by_layer: bool,
    progress: Callable[[int, int, str], None],
) -> tuple[dict[str, int], float | None]:
    """Set the new statistics. Returns the number of values used, by layer, and how much the outputs changed."""

    def forward(batch: Batch) -> Any:
        try:
            return signature.forward(batch)
        except (LayerReachedError, BnfoldError):
            raise
        except Exception as error:  # the user's module may raise anything
            shapes = ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in batch.items())
            text = first_line(error).rstrip(".")
            raise BnfoldError(f"{dataset.path}: the model does not take {shapes}: {text}; check the data") from error

    def batches() -> Iterator[Batch]:
        return (_tensors(dataset.path, arrays) for arrays in dataset.batches())

    first = next(batches())
    reached, old = reached_layers(module, forward, first)
    if not reached:
        raise BnfoldError(f"{type(module).__name__}: a forward pass in eval mode calls none of its BatchNorms")
    steps = len(dataset.sizes) * (len(reached) if layer_by_layer else 1)
    done = iter(range(1, steps + 1))
    gather = gather_layer_by_layer if layer_by_layer else gather_in_one_pass
    counts = gather(reached, forward, batches, lambda name: progress(next(done), steps, name))
    return counts, _distance(old, forward(first))


def _tensors(path: Path, arrays: Arrays) -> dict[str, Tensor]:
    try:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except TypeError as error:
        kinds = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise BnfoldError(f"{path}: holds {kinds}, which PyTorch has no tensors for; give numbers") from error
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _statistics(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A copy of each layer's running mean and variance, by its name."""
    return {
        name: (layer.running_mean.clone(), layer.running_var.clone())
        for name, layer in layers_with_statistics(module).items()
        if layer.running_mean is not None and layer.running_var is not None
    }


def _changed(
    checkpoint: Checkpoint, module: nn.Module, found: Mapping[str, tuple[Tensor, Tensor]], batches: int
) -> dict[str, Tensor]:
    """The checkpoint's tensors that change, under every name that a layer has."""
    layers = {id(module.get_submodule(name)): name for name in found}
    changed: dict[str, Tensor] = {}
    for alias, layer in module.named_modules(remove_duplicate=False):
        if id(layer) not in layers:
            continue
        name = layers[id(layer)]
        new = dict(zip(("running_mean", "running_var"), found[name], strict=True))
        for buffer, value in {**new, "num_batches_tracked": torch.tensor(batches)}.items():
            key = f"{alias}.{buffer}" if alias else buffer
            if key in checkpoint.tensors:  # files may lack one of several names, and old files count no batches
                old = checkpoint.tensors[key]
                # keep the count of training if it is larger; a count of 0 would mean that the layer is untrained
                changed[key] = torch.maximum(old, value) if buffer == "num_batches_tracked" else value
                if not torch.isfinite(value.to(old.dtype)).all():
                    raise BnfoldError(f"layer {name}: the new {buffer} is too large for {old.dtype} in the checkpoint")
    return changed


def _check_target(checkpoint: Checkpoint, out: Path) -> None:
    """Refuse what `write_checkpoint` would refuse, before hours are spent on statistics that cannot be saved."""
    if out.exists():
        raise BnfoldError(f"{out}: exists, and is not overwritten; choose another --out")
    if not out.parent.is_dir():
        raise BnfoldError(f"{out}: there is no folder {out.parent}; make it, or choose another --out")
    if (out.suffix == ".safetensors") != (checkpoint.text is not None):
        raise BnfoldError(f"{out}: expected a name with the suffix {checkpoint.path.suffix}, as the source has")
    if checkpoint.module is not None:
        raise BnfoldError(f"{checkpoint.path}: holds a whole module; save model.state_dict() and give its --arch")


def _record(dataset: DataSet, layer_by_layer: bool) -> dict[str, Any]:
    return {
        "data": dataset.path.name,
        "sha256": None if dataset.path.is_dir() else sha256(dataset.path),
        "samples": dataset.samples,
        "batches": len(dataset.sizes),
        "mode": LAYER_BY_LAYER if layer_by_layer else ONE_PASS,
        "seed": dataset.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _layer_change(
    name: str, values: int, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], epsilon: float
) -> LayerChange:
    mean_shift = ((new[0] - old[0]).abs() / (old[1] + epsilon).sqrt()).max().item()
    ratio = (new[1] + epsilon) / (old[1] + epsilon)
    low, high = ratio.min().item(), ratio.max().item()
    return LayerChange(
        name,
        len(old[0]),
        values,
        mean_shift if math.isfinite(mean_shift) else None,
        (low, high) if math.isfinite(low) and math.isfinite(high) and low >= 0 else None,
    )


def _distance(old: Any, new: Any) -> float | None:
    """The largest change of an output relative to its largest old value, over all outputs."""
    worst = 0.0
    for before, after in zip(pytree.tree_leaves(old), pytree.tree_leaves(new), strict=True):
        if isinstance(before, Tensor) and before.is_floating_point() and before.numel():
            change, size = (after - before).abs().max().item(), before.abs().max().item()
            if not math.isfinite(change / size if size else change):
                return None
            worst = max(worst, change / size if size else change)
    return worst
