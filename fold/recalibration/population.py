"""The mean and variance of each BatchNorm's input, over a whole data set and in float64.

Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021, section 3), call them population statistics: over every value
of a channel, in all samples and at all positions, and not a moving average over batches. Batches are merged as by Chan,
Golub and LeVeque ("Algorithms for computing the sample variance", 1983): the count, mean and sum of squared deviations
of two sets give those of their union without a difference of large numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fold.errors import BnfoldError

Batch = Mapping[str, Tensor]
Forward = Callable[[Batch], Any]
Batches = Callable[[], Iterable[Batch]]
Progress = Callable[[str], None]


class Moments:
    """Count, mean and sum of squared deviations of the values of each channel, over any number of batches.

    Values are taken relative to the mean of the first batch, so that a mean much larger than the deviation costs no
    digits (the shift of Chan, Golub and LeVeque, section 3).
    """

    def __init__(self) -> None:
        self.count = 0
        self._pivot = self._mean = self._squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Add a batch: [C, n] in float64, n at least 1."""
        if self.count == 0:
            self._pivot = values.mean(1, keepdim=True)
            self._mean = self._squares = torch.zeros(len(values), dtype=torch.float64)
        count = values.shape[1]
        variance, mean = torch.var_mean(values - self._pivot, 1, correction=0)
        total = self.count + count
        difference = mean - self._mean
        self._mean = self._mean + difference * (count / total)
        self._squares = self._squares + variance * count + difference**2 * (self.count * count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """[C]"""
        return self._pivot.squeeze(1) + self._mean

    @property
    def variance(self) -> Tensor:
        """[C], the mean squared deviation of a population: divided by n, not by n - 1."""
        return self._squares / self.count


class Accumulator(Protocol):
    """Collects a layer's inputs: `count` values or samples, their running mean [C] and running variance [C]."""

    @property
    def count(self) -> int: ...
    @property
    def mean(self) -> Tensor: ...
    @property
    def variance(self) -> Tensor: ...
    def add(self, values: Tensor) -> None: ...


class ValueMoments(Moments):
    """For BatchNorm: over all samples and positions."""

    def add(self, values: Tensor) -> None:
        """[N, C, ...]"""
        super().add(values.transpose(0, 1).flatten(1))


class SampleMoments:
    """For InstanceNorm: the mean and variance of each sample, averaged over the samples."""

    def __init__(self) -> None:
        self._means, self._variances = Moments(), Moments()

    def add(self, values: Tensor) -> None:
        """[N, C, ...]"""
        variances, means = torch.var_mean(values.flatten(2), 2, correction=0)
        self._means.add(means.transpose(0, 1))
        self._variances.add(variances.transpose(0, 1))

    @property
    def count(self) -> int:
        return self._means.count

    @property
    def mean(self) -> Tensor:
        return self._means.mean

    @property
    def variance(self) -> Tensor:
        return self._variances.mean


@dataclass(frozen=True)
class Reached:
    """A layer with running statistics, and how often one forward pass calls it."""

    name: str
    layer: _NormBase
    calls: int


def layers_with_statistics(module: nn.Module) -> dict[str, _NormBase]:
    """BatchNorm and InstanceNorm layers of any kind with running statistics, by their first name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None and layer.running_var is not None
    }


def reached_layers(module: nn.Module, forward: Forward, batch: Batch) -> tuple[list[Reached], Any]:
    """The layers that a forward pass in eval mode calls, in the order of their first call, and its outputs."""
    calls: dict[str, int] = {}

    def count(name: str, values: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1

    layers = layers_with_statistics(module)
    with _hooked(layers, count):
        outputs = forward(batch)
    return [Reached(name, layers[name], number) for name, number in calls.items()], outputs


def gather_in_one_pass(
    reached: list[Reached], forward: Forward, batches: Batches, progress: Progress
) -> dict[str, int]:
    """Compute and set the statistics of all layers in one pass over the data, as "precise BatchNorm" does.

    During the pass each layer normalises by the statistics of its batch, as in training, since the new ones are not
    known yet. The input of later layers therefore depends on the batches; larger batches make this smaller. Returns the
    number of values of a channel, by a layer's name.
    """
    found = {one.name: _accumulator(one.layer) for one in reached}

    def gather(name: str, values: Tensor) -> None:
        _check_size(name, layers[name], values)
        _add(name, found[name], values)

    layers = {one.name: one.layer for one in reached}
    with _normalising_by_batch(layers.values()), _hooked(layers, gather):
        for batch in batches():
            forward(batch)
            progress("all layers")
    for one in reached:
        _set(one, found[one.name])
    return {name: statistics.count for name, statistics in found.items()}


def gather_layer_by_layer(
    reached: list[Reached], forward: Forward, batches: Batches, progress: Progress
) -> dict[str, int]:
    """Compute and set the statistics of one layer after the other, with one pass over the data for each.

    Earlier layers already normalise by their new statistics, so the result is exact for any batches. A pass stops at
    its layer by a `LayerReachedError`, which `forward` must not catch. A layer that is called more than once normalises
    by the statistics of its batch in its own pass, as in training, because later calls may depend on the first. Returns
    the number of values of a channel, by a layer's name.
    """
    counts = {}
    for one in reached:
        found = _accumulator(one.layer)

        def gather(name: str, values: Tensor, one: Reached = one, found: Accumulator = found) -> None:
            if one.calls > 1:
                _check_size(name, one.layer, values)
            _add(name, found, values)
            if one.calls == 1:
                raise LayerReachedError

        with _normalising_by_batch([one.layer] if one.calls > 1 else []), _hooked({one.name: one.layer}, gather):
            for batch in batches():
                with suppress(LayerReachedError):
                    forward(batch)
                progress(one.name)
        _set(one, found)
        counts[one.name] = found.count
    return counts


@contextmanager
def in_float64() -> Iterator[None]:
    """A context in which every float tensor that a module creates or casts is in float64."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _CastToFloat64(), torch.no_grad():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(usual)


class _CastToFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


class LayerReachedError(Exception):
    """Ends a pass: the layer that it was for has its input."""


def _accumulator(layer: _NormBase) -> Accumulator:
    return SampleMoments() if isinstance(layer, _InstanceNorm) else ValueMoments()


def _add(name: str, found: Accumulator, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise BnfoldError(f"layer {name}: its input is not finite; look for an overflow before it")
    found.add(values)


def _check_size(name: str, layer: _NormBase, values: Tensor) -> None:
    """PyTorch refuses to normalise a single value in training mode."""
    groups = values.shape[0] * values.shape[1] if isinstance(layer, _InstanceNorm) else values.shape[1]
    if values.numel() == groups:
        raise BnfoldError(
            f"layer {name}: a single value in each channel cannot be normalised; raise --batch-size, or choose "
            "--layer-by-layer"
        )


def _set(one: Reached, found: Accumulator) -> None:
    assert one.layer.running_mean is not None
    assert one.layer.running_var is not None
    with torch.no_grad():
        one.layer.running_mean.copy_(found.mean)
        one.layer.running_var.copy_(found.variance)


@contextmanager
def _normalising_by_batch(layers: Iterable[_NormBase]) -> Iterator[None]:
    """A context in which these layers are in training mode, but not their children, such as Dropout in a subclass."""
    layers = list(layers)
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], on_input: Callable[[str, Tensor], None]) -> Iterator[None]:
    """A context in which `on_input` is called with a layer's name and input before the layer computes."""

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, args, kwargs: on_input(name, args[0] if args else next(iter(kwargs.values())))

    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
