"""Every architecture of models/, with random statistics, exported, folded and compared in float64 and at run time."""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
import torch

import fold
from fold.engine import FoldReport
from fold.evaluate.float64 import as_float64, evaluate
from fold.sources.quiet import silenced
from models.frozen_resnet import FrozenBatchNorm2d
from support.folding import ARCHITECTURES, architecture, batchnorms, check_fold, randomise, unfolded_graph

# How many BatchNorms must stay, without and with hostile γ (negative, zero and tiny), closed activations. The reasons
# are in docs/folding.md; a smaller number is progress, a larger one is a regression.
KEPT = {
    "mlp": (0, 0),
    "cnn": (0, 0),
    "vgg_after": (3, 3),
    "resnet": (0, 0),
    "preact_resnet": (0, 7),
    "mobilenet": (0, 0),
    "densenet": (6, 8),
    "unet": (0, 0),
    "repvgg": (0, 0),
    "conv1d_tcn": (0, 0),
    "mobileone": (0, 0),
    "fastvit": (0, 0),
    "repvit": (0, 0),
    "dpn": (5, 7),
    "resnetv2": (0, 4),
    "pyramidnet": (0, 4),
    "convmixer": (2, 4),
    "levit": (0, 0),
    "efficientvit": (0, 0),
    "nasnet": (0, 0),
    "mixnet": (0, 0),
    "senet": (0, 0),
    "ecanet": (0, 0),
    "shufflenet": (0, 0),
    "frozen_resnet": (0, 0),
    "r3d": (0, 0),
    "dcgan": (0, 0),
}


DIFFERING = [name for name, (positive, hostile) in KEPT.items() if positive != hostile]
"""Where positive γ folds in another way than hostile γ does."""


class Case(NamedTuple):
    """An architecture with random statistics, its unfolded graph, and what is served of it."""

    name: str
    module: torch.nn.Module
    unfolded: ir.Model
    folded: ir.Model
    report: FoldReport


def case(name: str, *, hostile: bool) -> Case:
    module = randomise(architecture(name), seed=3, hostile=hostile)
    model = unfolded_graph(name, module)
    return Case(name, module, model, *fold.fold_model(model))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def hostile(request: pytest.FixtureRequest) -> Case:
    return case(request.param, hostile=True)


def test_export_leaves_every_batchnorm_and_the_batch_free(hostile) -> None:
    model = hostile.unfolded
    kind = torch.nn.modules.batchnorm._BatchNorm
    assert batchnorms(model) == sum(isinstance(part, kind) for part in hostile.module.modules())
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert str(model.graph.inputs[0].shape[0]) == "batch"
    assert not isinstance(model.graph.outputs[0].shape[0], int)


def test_folding_is_exact_in_float64(hostile) -> None:
    check_fold(hostile.unfolded, kept=KEPT[hostile.name][True])


def test_none_stays_where_activations_are_opened(hostile) -> None:
    check_fold(hostile.unfolded, kept=0, open_activations=True)


def test_the_served_graph_is_as_close_to_float64_as_the_module(hostile) -> None:
    verdict = fold.verify_model(hostile.module, hostile.folded, samples=5, seed=1)
    assert verdict, verdict.message


def test_report_speaks_the_names_of_the_checkpoint(hostile) -> None:
    kinds = (torch.nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
    modules = {n for n, m in hostile.module.named_modules() if isinstance(m, kinds)}
    assert {entry.name for entry in (*hostile.report.folded, *hostile.report.kept)} == modules
    initializers = set(hostile.folded.graph.initializers)
    for entry in hostile.report.folded:
        assert entry.into, entry
        assert set(entry.into) <= initializers


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "frozen_resnet"])
def test_no_more_batchnorms_stay_than_the_exporter_leaves(name: str) -> None:
    """`torch.onnx.export(..., optimize=True)` folds BatchNorm too; its passes run here on the unfolded graph.

    γ is positive, as it is in most trained networks.
    """
    positive = case(name, hostile=False)
    assert len(positive.report.kept) == KEPT[name][False]
    if positive.report.kept:
        program = torch.onnx.ONNXProgram(positive.unfolded.clone(), None)
        with silenced():
            program.optimize()
        assert len(positive.report.kept) <= batchnorms(program.model)


@pytest.mark.parametrize("name", DIFFERING)
def test_positive_gamma_folds_as_exactly(name: str) -> None:
    positive = case(name, hostile=False)
    check_fold(positive.unfolded, kept=KEPT[name][False])
    check_fold(positive.unfolded, kept=0, open_activations=True)
    verdict = fold.verify_model(positive.module, positive.folded, samples=5, seed=1)
    assert verdict, verdict.message


def test_untrained_batchnorm_is_folded_and_warned_of() -> None:
    _, report = fold.fold_model(unfolded_graph("cnn", architecture("cnn")))
    assert report.folded
    assert all("never trained" in (entry.warning or "") for entry in report.folded)


def test_weights_are_rounded_once() -> None:
    """Each stored weight is the float32 nearest to the exact one, which a fold in float64 gives."""
    resnet = case("resnet", hostile=True)
    exact, _ = fold.fold_model(as_float64(resnet.unfolded))
    stored = resnet.folded
    assert set(exact.graph.initializers) == set(stored.graph.initializers)
    for name, value in stored.graph.initializers.items():
        array = value.const_value.numpy()
        if array.dtype == np.float32:
            wanted = exact.graph.initializers[name].const_value.numpy().astype(np.float32)
            wanted[np.abs(wanted) < np.finfo(np.float32).tiny] = 0
            np.testing.assert_array_equal(array, wanted)


class Tokens(torch.nn.Module):
    """A Linear over the last of three axes, its BatchNorm over what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, 4)
        self.bn = torch.nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.bn(self.linear(x).transpose(1, 2))
        return {"y": y, "first": y[:, 0]}


def test_a_linear_on_three_axes_keeps_its_name_and_several_outputs_get_stable_ones() -> None:
    module = randomise(Tokens().eval(), seed=1)
    model = fold.export_module(module, torch.randn(2, 3, 5))
    assert [value.name for value in model.graph.outputs] == ["y", "first"]
    folded, report = fold.fold_model(model)
    assert report.folded[0].into == ("linear.weight.T", "linear.bias")
    assert fold.verify_model(module, folded, samples=4)
    check_fold(model, kept=0)


def test_a_reshape_by_the_batch_becomes_constant_and_takes_every_batch() -> None:
    model = fold.export_module(architecture("cnn"), torch.randn(1, 1, 8, 8))
    assert "Shape" not in {node.op_type for node in model.graph}
    for rows in (0, 1, 5):
        assert evaluate(model, {"x": np.zeros((rows, 1, 8, 8))})["output"].shape == (rows, 10)
