"""Products and sums with constants that are no BatchNorm: folded where weights take them up, told as what they are."""

import json

import numpy as np
import onnx_ir as ir
import pytest

import fold
from support.commands import bnfold
from support.folding import GraphBuilder, check_fold


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def counted(report: fold.FoldReport) -> dict[str, tuple[int, int]]:
    return {entry.kind: (entry.folded, entry.kept) for entry in report.affines}


def hard_swish(g: GraphBuilder, x: ir.Value) -> ir.Value:
    zero, three, six = (g.constant(np.float64(number)) for number in (0, 3, 6))
    clipped = g.op("Clip", g.op("Add", x, three), zero, six)
    return g.op("Div", g.op("Mul", x, clipped), six)


def learnable_affine(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.op("Add", g.op("Mul", x, g.normal(1)), g.normal(1))


def detector() -> ir.Model:
    """As LCNetV3: each convolution and each activation has a learnable scale and shift."""
    g = GraphBuilder("n", 3, 8, 8)
    u = learnable_affine(g, g.op("Conv", g.x, g.normal(4, 3, 3, 3), g.normal(4), pads=[1] * 4))
    v = learnable_affine(g, hard_swish(g, u))
    w = learnable_affine(g, g.op("Conv", v, g.normal(5, 4, 1, 1)))
    return g.finish(g.op("Conv", g.op("Relu", w), g.normal(2, 5, 3, 3), pads=[1] * 4))


def test_learnable_scalars_go_where_weights_take_them_up() -> None:
    folded, report = check_fold(detector())
    assert operators(folded) == ["Conv", "Add", "Clip", "Mul", "Conv", "Relu", "Conv"]
    assert counted(report) == {"scalar": (3, 1)}  # one is Div, Mul and Add in a row; the 3 of the activation stays
    assert report.batchnorms == 0


SIDES = [(operator, first, shape) for operator in ("Mul", "Add", "Sub", "Div") for first in (False, True)
         for shape in ((), (1,), (4, 1, 1))]  # fmt: skip
SIDES.remove(("Sub", True, (4, 1, 1)))  # -1 and a shift by channel: a BatchNorm written out


@pytest.mark.parametrize(("operator", "first", "shape"), SIDES)
def test_every_operator_on_either_side(operator, first, shape) -> None:
    g = GraphBuilder("n", 4, 5, 5)
    x, c = g.op("Conv", g.x, g.normal(4, 4, 3, 3)), g.constant(np.asarray(g.random.uniform(1, 2, shape)))
    y = g.op(operator, c, x) if first else g.op(operator, x, c)
    folded, report = check_fold(g.finish(g.op("Sigmoid", y)))
    divides = operator == "Div" and first  # by the tensor, which is no map of it
    assert operators(folded) == ["Conv", *(["Div"] if divides else []), "Sigmoid"]
    kind = "scalar" if np.prod(shape) == 1 else "bias" if operator in ("Add", "Sub") else "scale"
    assert counted(report) == ({} if divides else {kind: (1, 0)})


def layer_norm(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Written out, as exporters for opsets below 17 do it; runtimes compute all of it as one node."""
    centred = g.op("Sub", x, g.op("ReduceMean", x, g.constant([-1])))
    variance = g.op("ReduceMean", g.op("Pow", centred, g.constant(np.float64(2))), g.constant([-1]))
    deviation = g.op("Sqrt", g.op("Add", variance, g.constant(np.float64(1e-5))))
    return g.op("Add", g.op("Mul", g.op("Div", centred, deviation), g.normal(6)), g.normal(6))


def test_a_layer_norm_written_out_is_left_as_it_is_and_told(tmp_path) -> None:
    g = GraphBuilder("n", 5, 6)
    model = g.finish(g.op("MatMul", layer_norm(g, g.op("MatMul", g.x, g.normal(6, 6))), g.normal(6, 4)))
    folded, report = check_fold(model)
    assert operators(folded) == operators(model)
    assert counted(report) == {"layernorm": (0, 1), "scalar": (0, 1)}
    assert report.batchnorms == 0
    ir.save(as_type(model, ir.DataType.FLOAT), tmp_path / "net.onnx")
    told = bnfold("inspect", tmp_path / "net.onnx").stderr
    assert "no BatchNorm: affine of LayerNorm: 0 folded, 1 kept; scalar product or sum: 0 folded, 1 kept" in told
    assert "the model has no BatchNorm" in told


@pytest.mark.parametrize("groups", [None, 2])
def test_the_affine_of_a_normalisation_by_sample_is_none_of_a_batchnorm(groups) -> None:
    g = GraphBuilder("n", 4, 5, 5)
    count = groups or 4
    x = g.x if groups is None else g.op("Reshape", g.x, g.constant([0, groups, -1]))
    y = g.op("InstanceNormalization", x, g.constant(np.ones(count)), g.constant(np.zeros(count)))
    y = y if groups is None else g.op("Reshape", y, g.constant([0, 4, 5, 5]))
    y = g.op("Add", g.op("Mul", y, g.normal(4, 1, 1)), g.normal(4, 1, 1))
    folded, report = check_fold(g.finish(g.op("Conv", y, g.normal(3, 4, 1, 1))))
    assert not {"Mul", "Add"} & set(operators(folded))
    assert counted(report) == {"groupnorm" if groups else "instancenorm": (1, 0)}


def test_a_gelu_keeps_its_constants() -> None:
    g = GraphBuilder("n", 5, 6)
    x = g.op("MatMul", g.x, g.normal(6, 6))
    erf = g.op("Erf", g.op("Div", x, g.constant(np.float64(np.sqrt(2)))))
    gated = g.op("Mul", x, g.op("Add", erf, g.constant(np.float64(1))))
    model = g.finish(g.op("MatMul", g.op("Mul", gated, g.constant(np.float64(0.5))), g.normal(6, 4)))
    folded, _ = check_fold(model)
    assert operators(folded) == operators(model)


def test_a_layer_scale_goes_into_the_product_before_it() -> None:
    g = GraphBuilder("n", 5, 6)
    branch = g.op("Mul", g.op("MatMul", g.op("Sigmoid", g.x), g.normal(6, 6)), g.normal(6))
    folded, report = check_fold(g.finish(g.op("Add", g.x, branch)))
    assert operators(folded) == ["Sigmoid", "MatMul", "Add"]
    assert counted(report) == {"layer_scale": (1, 0)}


def test_a_shift_is_not_added_to_what_other_nodes_read() -> None:
    g = GraphBuilder("n", 4, 5, 5)
    u = g.op("Conv", g.x, g.normal(4, 4, 1, 1))
    model = g.finish(g.op("Tanh", g.op("Add", u, g.constant(np.float64(1e6)))), g.op("Conv", u, g.normal(2, 4, 1, 1)))
    folded, report = check_fold(model)
    assert operators(folded) == operators(model)
    assert counted(report) == {"scalar": (0, 1)}


def test_much_that_is_shared_is_not_stored_twice() -> None:
    g = GraphBuilder("n", 400)
    table = g.constant(g.random.standard_normal((400, 400)))
    y = g.op("Mul", g.op("MatMul", g.x, table), g.constant(np.float64(20)))
    model = g.finish(g.op("Tanh", y), g.op("Sigmoid", g.op("MatMul", g.x, table)))
    folded, report = check_fold(model)
    assert (operators(folded), counted(report)) == (operators(model), {"scalar": (0, 1)})


def as_type(model: ir.Model, dtype: ir.DataType) -> ir.Model:
    """The model with all of its doubles in another type."""
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        value.type = ir.TensorType(dtype)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.DOUBLE:
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype.numpy()))
            value.type = ir.TensorType(dtype)
    return model


def test_a_number_in_float16_stays() -> None:
    g = GraphBuilder("n", 2)
    y = g.op("Mul", g.op("MatMul", g.x, g.normal(2, 2)), g.constant(np.float64(0.125)))
    folded, _ = fold.fold_model(as_type(g.finish(g.op("Tanh", y)), ir.DataType.FLOAT16))
    assert operators(folded) == ["MatMul", "Mul", "Tanh"]


def test_parallel_branches_are_merged_without_a_batchnorm(tmp_path) -> None:
    g = GraphBuilder("n", 4, 5, 5)
    y = g.op("Add", g.op("Conv", g.x, g.normal(4, 4, 3, 3), pads=[1] * 4), g.op("Conv", g.x, g.normal(4, 4, 1, 1)))
    model = g.finish(g.op("Relu", y))
    folded, report = check_fold(model)
    assert (operators(folded), report.branches_merged) == (["Conv", "Relu"], 2)
    ir.save(as_type(model, ir.DataType.FLOAT), tmp_path / "net.onnx")
    done = bnfold("fold", tmp_path / "net.onnx", "--out", tmp_path / "r", "--samples", 2)
    assert done.returncode == 0, done.stderr
    assert "0 BatchNorms: 0 folded, 0 kept; 2 parallel branches merged;" in done.stderr
    assert operators(ir.load(tmp_path / "r/net/1/model.onnx")) == ["Conv", "Relu"]


def test_what_was_folded_is_told_and_published(tmp_path) -> None:
    ir.save(as_type(detector(), ir.DataType.FLOAT), tmp_path / "net.onnx")
    done = bnfold("fold", tmp_path / "net.onnx", "--out", tmp_path / "r", "--samples", 2)
    assert done.returncode == 0, done.stderr
    assert "no BatchNorm: scalar product or sum: 3 folded, 1 kept" in done.stderr
    manifest = json.loads((tmp_path / "r/net/1/manifest.json").read_text())
    assert manifest["fold"]["affines"] == [{"kind": "scalar", "folded": 3, "kept": 1}]
    assert operators(ir.load(tmp_path / "r/net/1/model.onnx")).count("Mul") == 1
