"""The statistics of a whole data set: exact, and layer by layer whatever the batches."""

import copy
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fold.recalibration.population import (
    Moments,
    gather_in_one_pass,
    gather_layer_by_layer,
    in_float64,
    layers_with_statistics,
    reached_layers,
)
from support.recalibrating import Shared, assert_close, directly, images, net

Gather = Callable[..., dict[str, int]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gathered(gather: Gather, module: nn.Module, *batches: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The statistics that `gather` sets, in the module in float64; `module` stays as it is."""
    module = copy.deepcopy(module).double().eval()
    given = [{"x": batch.double()} for batch in batches]
    with in_float64():
        reached, _ = reached_layers(module, lambda batch: module(batch["x"]), given[0])
        gather(reached, lambda batch: module(batch["x"]), lambda: given, lambda name: None)
    assert not any(layer.training for layer in module.modules())
    return {n: (layer.running_mean, layer.running_var) for n, layer in layers_with_statistics(module).items()}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-8, 8), min_size=2, max_size=40).filter(lambda found: np.ptp(found) > 0.1),
    offset=st.sampled_from([0.0, 1e-3, -1e8, 1e8]),
    cuts=st.sets(st.integers(1, 39), max_size=6),
)
def test_a_merge_over_batches_is_exact_also_far_from_zero(values: list[float], offset: float, cuts: set[int]) -> None:
    x = np.array(values) + offset
    exact = [Fraction(value) for value in x]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    moments = Moments()
    for part in np.split(x, sorted(cut for cut in cuts if cut < len(x))):
        moments.add(torch.from_numpy(np.stack([part, -2 * part])))
    assert moments.count == len(x)
    assert abs(float(moments.mean[0]) - float(mean)) <= 1e-15 * abs(offset) + 1e-13
    assert moments.variance.tolist() == pytest.approx([float(variance), 4 * float(variance)], rel=1e-12)


def test_values_around_1e8_keep_their_variance() -> None:
    """The mean of the squares less the square of the mean would have no right digit here."""
    x = np.random.default_rng(0).normal(1e8, 1, 5000)
    moments = Moments()
    for part in np.array_split(x, 37):
        moments.add(torch.from_numpy(part[None]))
    mean = math.fsum(x) / len(x)
    assert moments.mean.item() == pytest.approx(mean, rel=1e-15)
    assert moments.variance.item() == pytest.approx(math.fsum((x - mean) ** 2) / len(x), rel=1e-12)


@pytest.mark.parametrize("sizes", [(23,), (1,) * 23, (10, 12, 1), (5, 18)])
def test_layer_by_layer_is_exact_whatever_the_batches(sizes: tuple[int, ...]) -> None:
    module, x = net(), torch.from_numpy(images())
    found = gathered(gather_layer_by_layer, module, *x.split(sizes))
    assert_close(found, directly(module, x))


def test_one_pass_over_one_batch_is_exact() -> None:
    module, x = net(), torch.from_numpy(images())
    assert_close(gathered(gather_in_one_pass, module, x), directly(module, x))


def test_one_pass_over_batches_normalises_each_by_its_own_statistics() -> None:
    """As precise BatchNorm does: the first layer is exact, and the second one's inputs are those of training mode."""
    module, x = net(), torch.from_numpy(images())
    parts = x.split((9, 14))
    found = gathered(gather_in_one_pass, module, *parts)
    exact = directly(module, x)
    assert_close({"bn1": found["bn1"]}, {"bn1": exact["bn1"]})
    with torch.no_grad():
        seen = [
            module.conv2(
                nn.functional.batch_norm(
                    module.conv1(part.double()), None, None, module.bn1.weight, module.bn1.bias, True, 0, module.bn1.eps
                ).relu()
            )
            for part in parts
        ]
    together = torch.cat(seen).transpose(0, 1).flatten(1)
    assert_close({"bn2": found["bn2"]}, {"bn2": (together.mean(1), together.var(1, correction=0))})
    assert (found["bn2"][0] - exact["bn2"][0]).abs().max() > 1e-6


@pytest.mark.parametrize("gather", [gather_in_one_pass, gather_layer_by_layer])
def test_a_shared_layer_gathers_all_its_calls(gather: Gather) -> None:
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    both = torch.cat([x, 3 * x + 1])
    found = gathered(gather, Shared(), *x.split((4, 5)))
    assert_close(found, {"norm": (both.mean(0), both.var(0, correction=0))})


@pytest.mark.parametrize("gather", [gather_in_one_pass, gather_layer_by_layer])
def test_instance_norm_keeps_the_means_over_its_samples(gather: Gather) -> None:
    x = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 9).reshape(8, 1, 1)
    found = gathered(gather, nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True)), *x.split((3, 5)))
    assert_close(found, {"0": (x.mean(2).mean(0), x.var(2, correction=0).mean(0))})


def test_every_kind_of_batchnorm_is_found_and_those_without_statistics_are_not() -> None:
    module = nn.Sequential(nn.SyncBatchNorm(2), nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm3d(2))
    assert list(layers_with_statistics(module)) == ["0", "2"]
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    found = gathered(gather_in_one_pass, nn.Sequential(nn.SyncBatchNorm(2)), x)  # PyTorch itself wants a GPU for it
    assert_close(found, {"0": (x.mean((0, 2)), x.var((0, 2), correction=0))})
