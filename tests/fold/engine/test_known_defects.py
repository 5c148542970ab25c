"""What other tools got wrong, as PyTorch modules: exported, folded, compared in float64 and with the module as it runs.

Those that show in a graph alone are beside their operators: tests/fold/engine/laws, tests/fold/engine/test_fold.py.
"""

import copy

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fold
from fold.evaluate.float64 import as_float64, evaluate
from fold.runtime.session import open_graph, run
from support.folding import batchnorms, check_fold, randomise


def check(module: nn.Module, *shape: int, kept: int = 0, hostile: bool = True) -> list[str]:
    """Fold a module with random weights and statistics, compare, and see that it is untouched; the operators left."""
    torch.manual_seed(5)
    module = randomise(module.eval(), seed=3, hostile=hostile)
    before = copy.deepcopy(module.state_dict())
    model = fold.export_module(module, torch.randn(2, *shape))
    check_fold(model, kept=kept)
    folded, _ = fold.fold_model(model)
    verdict = fold.verify_model(module, folded, samples=4)
    assert verdict, verdict.message
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    return [node.op_type for node in folded.graph]


class Shared(nn.Module):
    """One convolution called twice, with a BatchNorm of its own behind each call, one for both, or on one path only."""

    def __init__(self, *norms: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.Identity() if norm is None else norm for norm in norms)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = torch.tanh(norm(self.conv(x)))
        return x


def test_a_convolution_that_is_called_twice() -> None:
    """torch.fx and torchao fold one BatchNorm into the weights of both calls."""
    norm = nn.BatchNorm2d(3)
    for norms in ((nn.BatchNorm2d(3), nn.BatchNorm2d(3)), (nn.BatchNorm2d(3), None), (None, norm), (norm, norm)):
        assert check(Shared(*norms), 3, 5, 6) == ["Conv", "Tanh", "Conv", "Tanh"]


class ReadTwice(nn.Module):
    """A convolution whose output is normalised, and read or returned as it is."""

    def __init__(self, *, returned: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.returned = returned

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return torch.sigmoid(self.norm(y)), y if self.returned else torch.sigmoid(y)


@pytest.mark.parametrize("returned", [True, False])
def test_a_convolution_that_others_read_is_not_changed_for_them(returned) -> None:
    """torchao asks for no users at all."""
    check(ReadTwice(returned=returned), 3, 5, 6, kept=1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_in_groups(groups, bias) -> None:
    """coremltools 9 folds it wrong, torch.nn.utils.fusion raises an error."""
    deconv = nn.ConvTranspose2d(4, 8, (3, 2), stride=2, groups=groups, bias=bias)
    assert check(nn.Sequential(deconv, nn.BatchNorm2d(8)), 4, 5, 6) == ["ConvTranspose"]


@pytest.mark.parametrize(("length", "features"), [(5, 5), (4, 5)])
def test_a_linear_on_three_axes_and_a_batchnorm_over_another_of_them(length, features) -> None:
    """BatchNorm1d of [N, L, C] is over L. torch.fx, torchao and AIMET fold it into the columns where L = C."""
    module = nn.Sequential(nn.Linear(7, features), nn.BatchNorm1d(length), nn.Tanh())
    check(module, length, 7, kept=1)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batchnorm_without_parameters(affine) -> None:
    """torch.nn.utils.fusion.fuse_linear_bn raises an error without γ and β."""
    assert check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine)), 3, 5, 6) == ["Conv"]
    assert check(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=affine)), 3) == ["Gemm"]


def test_a_batchnorm_without_running_statistics_is_never_folded() -> None:
    """In eval mode it normalises by the batch: its statistics are computed, and nothing constant is behind them."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1)).eval()
    model = fold.export_module(module, torch.randn(2, 3, 5, 6))
    folded, report = fold.fold_model(model)
    assert report.folded == ()
    assert len(report.kept) == batchnorms(folded) == batchnorms(model)


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that activates, as timm has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x))


@pytest.mark.parametrize("norm", [NormAct, nn.SyncBatchNorm])
def test_a_subclass_of_batchnorm_is_one(norm) -> None:
    """torch.fx looks at the exact type, and leaves them."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4))
    assert check(module, 3, 5, 6) == ["Conv", "Relu"][: 2 if norm is NormAct else 1]


@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights(parametrize) -> None:
    """torchao and fuse_fx raise an error; what the parametrisation amounts to is a constant in eval mode."""
    assert check(nn.Sequential(parametrize(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), 3, 5, 6) == ["Conv"]


def test_two_batchnorms_in_a_row_and_one_behind_a_dropout() -> None:
    """torchao folds the first and loses the second."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.BatchNorm2d(4))
    assert check(module, 3, 5, 6) == ["Conv"]


@pytest.mark.parametrize("bias", [True, False])
def test_no_bias_that_the_exporter_made_up_stands_in_the_way(bias) -> None:
    """torch.onnx writes an absent bias as Expand(CastLike(0)), at which every other tool stops."""
    model = fold.export_module(nn.Conv2d(3, 4, 3, bias=bias), torch.randn(2, 3, 5, 6))
    (node,) = model.graph
    assert len([value for value in node.inputs if value is not None]) == 2 + bias
    assert check(nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4)), 3, 5, 6) == ["Conv"]


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.1])
def test_the_epsilon_is_the_modules_own(eps) -> None:
    """PaddleLite and others took 1e-5 for all; a variance of its size tells."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=eps)).eval()
    with torch.no_grad():
        module[1].running_var.fill_(eps)
    model = fold.export_module(module, torch.randn(2, 3, 5, 6))
    _, report = check_fold(model, kept=0)
    assert report.folded[0].into == ("0.weight", "0.bias")
    weights = fold.fold_model(model)[0].graph.initializers["0.weight"].const_value.numpy()
    expected = module[0].weight.detach().double().numpy() / np.sqrt(2 * np.float64(np.float32(eps)))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_statistics_that_float16_cannot_hold_are_refused() -> None:
    """Elsewhere an infinite variance makes a scale of zero, and the channel silently dies."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        module[1].running_var[2] = 1e5
    model = fold.export_module(module.half(), torch.randn(2, 3, 5, 6).half())
    _, report = fold.fold_model(model)
    assert [kept.reason for kept in report.kept] == ["its parameters or statistics hold a value that is not finite"]


def test_our_sessions_do_not_fold_a_batchnorm_over_another_axis_of_the_same_size() -> None:
    """ONNX Runtime 1.31 by default folds it into the columns of the product, and the result is wrong by 10."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[3, 3] x) => (float[3, 3] y)
        <float[3, 3] W = {1, -2, 3, 4, 5, -6, 7, 8, 9}, float[3] gamma = {3, -2, 0.5}, float[3] beta = {1, -1, 2},
         float[3] mean = {2, 4, -5}, float[3] variance = {1, 3, 0.1}>
        { u = MatMul(x, W) v = Transpose(u) y = BatchNormalization(v, gamma, beta, mean, variance) }
    """)
    x = {"x": np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)}
    np.testing.assert_allclose(run(open_graph(model), x)["y"], evaluate(model, x)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights_are_folded_in_float64_and_rounded_once(dtype) -> None:
    """Others scale in the narrow type: a product too large or a rounding too many on the way."""
    arrays = {
        "W": [[300, -0.3, 7.1]],
        "gamma": [1000, 0.0123, -3],
        "beta": [0.3, -0.1, 2],
        "mean": [20, 0.4, -5],
        "variance": [40000, 0.3, 0.1],
    }
    narrow = ir.DataType[dtype.upper()].numpy()
    tensors = [ir.tensor(np.array(numbers, narrow), name=name) for name, numbers in arrays.items()]
    declared = ", ".join(f"{dtype}{list(tensor.shape)} {tensor.name}" for tensor in tensors)
    text = f"""
        <ir_version: 10, opset_import: ["": 20]> g ({dtype}[n, 1] x) => ({dtype}[n, 3] y) <{declared}>
        {{ u = MatMul(x, W) y = BatchNormalization(u, {", ".join(list(arrays)[1:])}) }}
    """
    model = ir.from_onnx_text(text, initializers=tensors)
    exact, stored = (fold.fold_model(one)[0].graph.initializers for one in (as_float64(model), model))
    assert set(stored) == set(exact)
    for name, value in stored.items():
        assert value.dtype == ir.DataType[dtype.upper()]
        array = value.const_value.numpy()
        np.testing.assert_array_equal(array, exact[name].const_value.numpy().astype(array.dtype))


def test_a_module_in_training_mode_is_folded_as_it_evaluates_and_stays_in_training_mode() -> None:
    """torch.onnx only warns, and writes the statistics of the example's batch or of none."""
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)), seed=1).train()
    statistics = copy.deepcopy(module[1].state_dict())
    folded, report = fold.fold_model(fold.export_module(module, torch.randn(2, 3, 5, 6)))
    assert [node.op_type for node in folded.graph] == ["Conv"]
    assert len(report.folded) == 1
    assert fold.verify_model(module, folded, samples=4)
    assert module.training
    assert module[1].training
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in module[1].state_dict().items())
