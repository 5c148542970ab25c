"""An InstanceNorm with running statistics is a BatchNorm in eval mode, and is exported as one."""

import numpy as np
import pytest
import torch
from torch import nn

import fold
from fold.evaluate.float64 import evaluate
from fold.sources.export import export_graph, export_program
from support.folding import check_fold, randomise

SPATIAL = {1: (7,), 2: (6, 7), 3: (4, 6, 5)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def network(rank: int, *, affine: bool, tracked: bool = True) -> nn.Module:
    torch.manual_seed(4)
    norm = INSTANCE_NORMS[rank](5, affine=affine, track_running_stats=tracked)
    with torch.no_grad():
        if tracked:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.1, 3)
        if affine:
            norm.weight.copy_(torch.tensor([0.0, -0.7, 1.8, 1e-7, 0.3]))
            norm.bias.normal_()
    return nn.Sequential(CONVOLUTIONS[rank](3, 5, 3, padding=1), norm, nn.ReLU()).eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_instance_norm_with_running_statistics_folds_as_a_batchnorm(rank, affine) -> None:
    module = network(rank, affine=affine)
    model = fold.export_module(module, torch.randn(2, 3, *SPATIAL[rank]))
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization", "Relu"]
    state = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    assert state <= set(model.graph.initializers)
    folded, report = check_fold(model, kept=0)
    assert [node.op_type for node in folded.graph] == ["Conv", "Relu"]
    assert [(entry.name, entry.channels) for entry in report.folded] == [("1", 5)]
    x = torch.randn(3, 3, *SPATIAL[rank], dtype=torch.float64)
    truth = module.double()(x).detach().numpy()
    np.testing.assert_allclose(evaluate(model, {"input": x.numpy()})["output"], truth, atol=1e-8)


def test_the_reference_still_says_instance_norm_and_agrees() -> None:
    module = network(2, affine=True)
    program = export_program(module, torch.randn(2, 3, 6, 7))
    before = str(program.graph)
    folded, _ = fold.fold_model(export_graph(program))
    assert str(program.graph) == before
    assert "instance_norm" in before
    assert isinstance(module[1], nn.InstanceNorm2d)
    assert fold.verify_model(module, folded, samples=4)


def test_an_instance_norm_that_computes_its_statistics_stays_and_pins_what_it_reads() -> None:
    norm = network(2, affine=True, tracked=False)[1]
    module = nn.Sequential(nn.BatchNorm2d(5), norm, nn.Conv2d(5, 4, 1))
    model = fold.export_module(randomise(module, seed=2), torch.randn(2, 5, 6, 7))
    folded, _ = check_fold(model, kept=1)
    assert [node.op_type for node in folded.graph] == ["BatchNormalization", "InstanceNormalization", "Conv"]
