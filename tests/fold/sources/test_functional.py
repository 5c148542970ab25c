"""Programs that the exporter need not trace again give the graph that it makes by itself; every other goes its way."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from unittest import mock

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from fold.evaluate.float64 import evaluate
from fold.sources.export import export_graph, export_program
from support.commands import run
from support.folding import ARCHITECTURES, architecture, export, export_retraced, randomise

# --- the same graph


def shape_of(model: ir.Model) -> tuple[list[object], Counter[str]]:
    """What a graph computes, whatever its nodes and tensors are called: its outputs, and how often it has each node.

    A node is known by its operator, its attributes, and the same of all that it reads.
    """
    known: dict[ir.Value | None, str] = {None: "", **{value: str(value.name) for value in model.graph.inputs}}
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        known[value] = f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    nodes: Counter[str] = Counter()
    for node in model.graph:
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        read = [known[value] for value in node.inputs]
        text = hashlib.sha256(repr((node.op_type, attributes, read)).encode()).hexdigest()
        nodes[f"{node.op_type} {text}"] += 1
        known |= {value: f"{text}.{index}" for index, value in enumerate(node.outputs)}
    return [(value.name, str(value.shape), known[value]) for value in model.graph.outputs], nodes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_graph_is_that_of_the_exporter(name: str) -> None:
    fast, slow = export(name), export_retraced(name)
    assert shape_of(fast) == shape_of(slow)
    state = architecture(name).state_dict().keys()
    assert fast.graph.initializers.keys() & state == slow.graph.initializers.keys() & state


# --- writes in place


class Net(nn.Module):
    """A convolution with BatchNorm, and what a test does with its result."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.norm(self.conv(x)))


def exported(then: Callable[[Tensor], Tensor]) -> list[str]:
    """Why a network was traced again. Its graph computes what the network does."""
    torch.manual_seed(0)
    module = randomise(Net(then), seed=0).eval()
    reasons: list[str] = []
    model = export_graph(export_program(module, torch.randn(2, 3, 5, 6)), note=reasons.append)
    x = np.random.default_rng(0).standard_normal((3, 3, 5, 6))
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(evaluate(model, {"x": x})["output"], expected, atol=1e-6)
    return reasons


def read_before_and_behind(h: Tensor) -> Tensor:
    before = h * 2
    h.relu_()
    return before + h


def written_twice(h: Tensor) -> Tensor:
    other = h.relu_()
    h.mul_(3.0).add_(1.0)
    return other - h.sigmoid()


def dropped_out(h: Tensor) -> Tensor:
    dropped = nn.functional.dropout(h, 0.5, False)
    dropped.relu_()
    return h + dropped


def dropped_out_in_place(h: Tensor) -> Tensor:
    dropped = nn.functional.dropout(h, 0.5, False, inplace=True)
    return dropped.relu_() + h


def copied(h: Tensor) -> Tensor:
    turned = h.transpose(2, 3).contiguous()
    turned.relu_()
    return h.contiguous() + turned.transpose(2, 3)


def returned(h: Tensor) -> Tensor:
    kept = h
    h.add_(1.0)
    return kept


def viewed_behind(h: Tensor) -> Tensor:
    h.relu_()
    return h.flatten(2).mean(2)


@pytest.mark.parametrize(
    "then", [read_before_and_behind, written_twice, dropped_out, dropped_out_in_place, returned, viewed_behind, copied]
)
def test_a_write_in_place_is_seen_by_what_reads_later(then: Callable[[Tensor], Tensor]) -> None:
    assert exported(then) == []


def test_an_input_may_have_the_name_of_a_builtin() -> None:
    """That of `nn.Sequential` is `input`."""
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()
    reasons: list[str] = []
    program = export_program(nn.Sequential(*layers), torch.randn(2, 3, 5, 6))
    model = export_graph(program, note=reasons.append)
    assert ([value.name for value in model.graph.inputs], reasons) == (["input"], [])


def written_through_a_view(h: Tensor) -> Tensor:
    h[:, :2].mul_(2.0)
    return h


def viewed_before(h: Tensor) -> Tensor:
    view = h.flatten(2)
    h.relu_()
    return view


def variance(h: Tensor) -> Tensor:
    return h.var(dim=(2, 3))


@pytest.mark.parametrize(
    ("then", "why"),
    [
        (written_through_a_view, "aten.mul_.Tensor writes to memory that may be shared"),
        (viewed_before, "aten.relu_.default writes to memory that may be shared"),
        (variance, "aten.var.dim is decomposed"),
    ],
)
def test_what_is_not_known_goes_the_way_of_the_exporter(then: Callable[[Tensor], Tensor], why: str) -> None:
    assert exported(then) == [why]


@pytest.mark.parametrize("error", [AttributeError("'OpOverload' has no attribute '_schema'"), ImportError("no module")])
def test_a_pytorch_with_other_internals_goes_the_way_of_the_exporter(error: Exception) -> None:
    with mock.patch("fold.sources.functional._rewrite", side_effect=error):
        assert exported(torch.relu) == [str(error)]


def test_the_json_says_why_a_program_was_traced_again(tmp_path) -> None:
    torch.save(randomise(architecture("mlp"), seed=0).state_dict(), tmp_path / "mlp.pt")
    options = ("--arch", "models.mlp:mlp", "--input", "1,8,8", "--out", tmp_path / "repository")
    assert run("fold", tmp_path / "mlp.pt", *options)[0]["retraced"] is None
    with mock.patch("fold.sources.functional._rewrite", side_effect=AttributeError("_schema")):
        assert run("fold", tmp_path / "mlp.pt", *options)[0]["retraced"] == "_schema"
    manifests = [json.loads((tmp_path / f"repository/mlp/{n}/manifest.json").read_text()) for n in (1, 2)]
    assert [manifest["source"].get("retraced") for manifest in manifests] == [None, "_schema"]
