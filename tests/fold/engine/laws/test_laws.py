"""One picture an operator: what folds through it, what it stops, always compared in float64 (folding.check_fold)."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fold
from fold.engine.fold import fold_graph
from fold.engine.laws import LAWS
from fold.graph.reshapes import Block, matching_blocks
from support import ROOT
from support.folding import GraphBuilder, batchnorms, check_fold

# --- nodes with weights, before and behind a BatchNorm


@pytest.mark.parametrize(
    ("spatial", "channels", "outputs", "groups"),
    [((7,), 4, 6, 1), ((7, 5), 6, 9, 3), ((6, 5, 7), 4, 2, 2), ((7, 8), 5, 10, 5)],
    ids=["1d", "grouped", "3d", "depthwise"],
)
@pytest.mark.parametrize("bias", [False, True])
def test_conv_then_batchnorm(spatial, channels, outputs, groups, bias) -> None:
    g = GraphBuilder("n", channels, *spatial)
    rank = len(spatial)
    W = g.normal(outputs, channels // groups, *[3] * rank)
    B = [g.normal(outputs)] if bias else []
    y = g.op("Conv", g.x, W, *B, group=groups, pads=[1] * rank + [2] * rank, strides=[2] * rank, dilations=[1] * rank)
    _, report = check_fold(g.finish(g.batchnorm(y, outputs, hostile=True)), kept=0)
    assert report.folded[0].channels == outputs


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_batchnorm_then_unpadded_conv(groups) -> None:
    g = GraphBuilder("n", 6, 7, 9)
    v = g.batchnorm(g.x, 6)
    check_fold(g.finish(g.op("Conv", v, g.normal(12, 6 // groups, 3, 2), g.normal(12), group=groups)), kept=0)


def test_batchnorm_with_a_shift_stays_before_a_padded_conv() -> None:
    g = GraphBuilder("n", 3, 7, 9)
    y = g.op("Conv", g.batchnorm(g.x, 3), g.normal(5, 3, 3, 3), pads=[1, 1, 1, 1])
    _, report = check_fold(g.finish(y), kept=1)
    assert "pads its input with zeros" in report.kept[0].reason
    assert report.kept[0].culprit == "Conv_1"


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_automatic_padding_is_padding(auto_pad) -> None:
    g = GraphBuilder("n", 3, 7, 9)
    y = g.op("Conv", g.batchnorm(g.x, 3), g.normal(5, 3, 3, 3), auto_pad=auto_pad)
    check_fold(g.finish(y), kept=1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_transpose_then_batchnorm(groups, bias) -> None:
    """Grouped weights are [I, O/g, k]: each group writes its own block of channels."""
    g = GraphBuilder("n", 4, 5, 7)
    B = [g.normal(8)] if bias else []
    y = g.op(
        "ConvTranspose", g.x, g.normal(4, 8 // groups, 3, 2), *B,
        group=groups, strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 0],
    )  # fmt: skip
    check_fold(g.finish(g.batchnorm(y, 8, hostile=True)), kept=0)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_scale_but_no_shift_goes_into_a_following_conv_transpose(groups) -> None:
    g = GraphBuilder("n", 6, 5, 7)
    y = g.op("ConvTranspose", g.batchnorm(g.x, 6), g.normal(6, 2, 3, 3), group=groups, strides=[2, 2])
    _, report = check_fold(g.finish(y), kept=1)
    assert "no shift" in report.kept[0].reason


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (5,), (1, 5)])
def test_gemm_on_either_side(trans, bias) -> None:
    g = GraphBuilder("n", 7)
    W = g.normal(*((5, 7) if trans else (7, 5)))
    C = [] if bias is None else [g.normal(*bias)]
    y = g.op("Gemm", g.batchnorm(g.x, 7), W, *C, transB=trans, alpha=0.7, beta=1.3)
    check_fold(g.finish(g.batchnorm(y, 5, hostile=True)), kept=0)


@pytest.mark.parametrize("bias", [False, True])
def test_matmul_with_a_constant_matrix(bias) -> None:
    """On three axes the features are last: a BatchNorm over them comes through a Transpose."""
    g = GraphBuilder("n", 4, 7)
    y = g.op("MatMul", g.x, g.normal(7, 5))
    if bias:
        y = g.op("Add", g.normal(5), y)
    y = g.op("Transpose", y, perm=[0, 2, 1])
    folded, _ = check_fold(g.finish(g.batchnorm(y, 5, hostile=True)), kept=0)
    assert [node.op_type for node in folded.graph] == ["MatMul", "Add", "Transpose"]


def test_matmul_whose_product_is_read_twice_keeps_both_readers_right() -> None:
    g = GraphBuilder("n", 4)
    y = g.op("MatMul", g.x, g.normal(4, 5))
    z = g.op("Add", y, g.normal(5))
    check_fold(g.finish(g.op("Relu", g.batchnorm(z, 5, positive=True)), g.op("Sigmoid", y)))


def test_linear_and_batchnorm_over_another_axis_of_the_same_size_is_not_a_fold_of_columns() -> None:
    """[N, L, C] with L = C: the BatchNorm is over L, and the weights' columns are C (fx.fuse, torchao and AIMET fold it
    wrong)."""
    g = GraphBuilder("n", 5, 5)
    y = g.op("MatMul", g.x, g.normal(5, 5))
    check_fold(g.finish(g.batchnorm(y, 5)), kept=1)


@pytest.mark.parametrize("op", ["Transpose", "Reshape"])
def test_batchnorm_behind_a_matmul_and_a_move_of_equal_sizes(op) -> None:
    """ONNX Runtime 1.31 folds this wrong: sizes coincide, the channel axis does not."""
    g = GraphBuilder(6, 6)
    y = g.op("MatMul", g.x, g.normal(6, 6))
    y = g.op("Transpose", y, perm=[1, 0]) if op == "Transpose" else g.op("Reshape", y, g.constant([6, 6]))
    check_fold(g.finish(g.batchnorm(y, 6)))


# --- activations and pools


def test_relu_lets_a_positive_scale_pass() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Relu", g.op("Conv", g.x, g.normal(4, 3, 3, 3), g.normal(4)))
    y = g.op("Conv", g.batchnorm(y, 4, positive=True), g.normal(5, 4, 2, 3))
    check_fold(g.finish(y), kept=0)


def test_relu_stops_a_negative_scale_where_weights_are_on_one_side_only() -> None:
    g = GraphBuilder("n", 3)
    v = g.batchnorm(g.x, 3)
    check_fold(g.finish(g.op("Relu", v)), kept=1)


def test_a_negative_scale_before_weights_and_behind_a_relu_goes_forward() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Relu", g.op("Conv", g.x, g.normal(4, 3, 3, 3)))
    check_fold(g.finish(g.op("Conv", g.batchnorm(y, 4), g.normal(5, 4, 1, 1))), kept=0)


@pytest.mark.parametrize(
    ("op", "attributes", "positive", "kept"),
    [
        ("MaxPool", {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0]}, True, 0),
        ("MaxPool", {"kernel_shape": [2, 3]}, False, 0),  # a negative scale stays behind it, where weights take it
        ("AveragePool", {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0]}, False, 0),
        ("AveragePool", {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1}, False, 1),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, False, 0),
        ("GlobalAveragePool", {}, False, 0),
        ("GlobalMaxPool", {}, True, 0),
    ],
)
def test_pools_between_batchnorm_and_weights(op, attributes, positive, kept) -> None:
    """x -> BN -> pool -> 1x1 conv: forward through the pool. The input is pinned, so a max needs a positive scale."""
    g = GraphBuilder("n", 4, 6, 7)
    y = g.op(op, g.batchnorm(g.x, 4, positive=positive), **attributes)
    model = g.finish(g.op("Conv", y, g.normal(5, 4, 1, 1)))
    check_fold(model, kept=1 if op == "MaxPool" and not positive else kept)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_batchnorm_behind_a_pool_goes_into_the_weights_before_it(op) -> None:
    g = GraphBuilder("n", 3, 7, 8)
    y = g.op(op, g.op("Conv", g.x, g.normal(4, 3, 2, 2)), kernel_shape=[2, 3], strides=[2, 1])
    check_fold(g.finish(g.batchnorm(y, 4, positive=True)), kept=0)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_mean_over_space(keepdims, axes) -> None:
    g = GraphBuilder("n", 4, 6, 7)
    y = g.op("ReduceMean", g.batchnorm(g.x, 4), g.constant(axes), keepdims=keepdims)
    if keepdims:
        y = g.op("Squeeze", y, g.constant([2, 3]))
    check_fold(g.finish(g.op("Gemm", y, g.normal(4, 3), g.normal(3))), kept=0)


def test_mean_over_channels_stops_scales_that_differ() -> None:
    g = GraphBuilder("n", 4, 6, 7)
    y = g.op("ReduceMean", g.batchnorm(g.x, 4), g.constant([1]), keepdims=1)
    check_fold(g.finish(g.op("Conv", y, g.normal(3, 1, 1, 1))), kept=1)


# --- sums and concatenations


def test_two_normalised_branches_that_are_added() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    a = g.batchnorm(g.op("Conv", g.x, g.normal(4, 3, 1, 1)), 4, hostile=True)
    b = g.batchnorm(g.op("Conv", g.x, g.normal(4, 3, 3, 3), pads=[1, 1, 1, 1]), 4, hostile=True)
    check_fold(g.finish(g.op("Relu", g.op("Add", a, b))), kept=0)


def test_batchnorm_of_a_sum_goes_into_both_branches() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    a = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    b = g.op("Conv", g.op("Tanh", g.x), g.normal(4, 3, 3, 3), pads=[1, 1, 1, 1])
    _, report = check_fold(g.finish(g.batchnorm(g.op("Add", a, b), 4, hostile=True)), kept=0)
    assert len(report.folded[0].into) == 3  # two scaled weights, and one bias that took the shift


def test_a_tensor_added_to_itself() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    check_fold(g.finish(g.batchnorm(g.op("Add", y, y), 4)), kept=0)


def test_the_shifts_of_a_preactivation_stream_vanish_into_the_branches() -> None:
    g = GraphBuilder("n", 4, 6, 7)
    stream = g.op("Conv", g.x, g.normal(4, 4, 3, 3), pads=[1, 1, 1, 1])
    for _ in range(4):
        branch = g.op("Relu", g.batchnorm(stream, 4, positive=True))
        branch = g.op("Conv", branch, g.normal(4, 4, 3, 3), pads=[1, 1, 1, 1])
        stream = g.op("Add", stream, branch)
    check_fold(g.finish(g.op("GlobalAveragePool", g.op("Relu", g.batchnorm(stream, 4, positive=True)))), kept=0)


def test_a_batchnorm_that_stays_carries_its_mean_as_its_input_is_carried() -> None:
    """The scale of what it reads went to another BatchNorm: its own mean would be a thousand times that."""
    g = GraphBuilder("n", 4, 6, 7)
    stream = g.op("Conv", g.x, g.normal(4, 4, 1, 1))
    parameters = [np.full(4, 1e-3), np.full(4, 1e-3), np.ones(4), np.ones(4)]
    small = g.op("BatchNormalization", stream, *(g.constant(array) for array in parameters))
    stays = g.batchnorm(stream, 4)
    branches = [g.op("Conv", g.op("Relu", v), g.normal(4, 4, 1, 1)) for v in (small, stays)]
    model = g.finish(*branches)
    folded, report = check_fold(model, kept=1)
    assert report.kept[0].node == stays.producer().name
    p, q = (array.reshape(4) for array in fold_graph(model).carried[stream.name])
    np.testing.assert_allclose(p, 1e-3, rtol=1e-4)
    before, after = (
        [value.const_value.numpy() for node in graph if node.name == report.kept[0].node for value in node.inputs[1:]]
        for graph in (model.graph, folded.graph)
    )
    for expected, found in zip((before[0] / p, before[1], p * before[2] + q, before[3]), after, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_constants_added_to_a_tensor() -> None:
    g = GraphBuilder("n", 4, 6, 7)
    y = g.op("Add", g.op("Conv", g.x, g.normal(4, 4, 1, 1)), g.normal(4, 1, 1))
    y = g.op("Add", g.normal(1), y)
    check_fold(g.finish(g.batchnorm(y, 4, hostile=True)), kept=0)


def test_concatenation_of_convolutions() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    a = g.op("Conv", g.x, g.normal(2, 3, 1, 1))
    b = g.op("Relu", g.op("Conv", g.x, g.normal(5, 3, 1, 1)))
    _, report = check_fold(
        g.finish(g.batchnorm(g.op("Concat", a, g.op("Conv", b, g.normal(4, 5, 1, 1)), axis=1), 6)), kept=0
    )
    assert len(report.folded[0].into) == 4


def test_concatenation_along_another_axis() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    a, b = (g.op("Conv", g.x, g.normal(4, 3, 1, 1)) for _ in range(2))
    check_fold(g.finish(g.batchnorm(g.op("Concat", a, b, axis=3), 4)), kept=0)


# --- movement of data


def test_batchnorm_then_flatten_then_linear() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Flatten", g.batchnorm(g.x, 3))
    check_fold(g.finish(g.op("Gemm", y, g.normal(60, 7), g.normal(7))), kept=0)


def test_batchnorm_over_flattened_features_cannot_go_back_but_goes_forward() -> None:
    g = GraphBuilder("n", 3, 2, 3)
    y = g.op("Flatten", g.op("Conv", g.x, g.normal(4, 3, 1, 1)))
    v = g.batchnorm(y, 24)
    check_fold(g.finish(g.op("Gemm", v, g.normal(24, 5))), kept=0)


def test_channel_shuffle_is_followed() -> None:
    g = GraphBuilder("n", 6, 4, 5)
    y = g.op("Conv", g.x, g.normal(6, 6, 1, 1))
    y = g.op("Reshape", y, g.constant([-1, 2, 3, 4, 5]))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3, 4]), g.constant([-1, 6, 4, 5]))
    check_fold(g.finish(g.batchnorm(y, 6, hostile=True)), kept=0)


def test_linear_flatten_batchnorm_reshape() -> None:
    """LeViT: [N, L, C] -> [N*L, C] -> BatchNorm over C -> [N, L, C]."""
    g = GraphBuilder(2, 5, 7)
    y = g.op("Reshape", g.op("MatMul", g.x, g.normal(7, 3)), g.constant([10, 3]))
    y = g.op("Reshape", g.batchnorm(y, 3, hostile=True), g.constant([2, 5, 3]))
    check_fold(g.finish(y), kept=0)


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
def test_what_does_nothing_in_eval_mode(op) -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op(op, g.op("Conv", g.x, g.normal(4, 3, 1, 1)))
    check_fold(g.finish(g.batchnorm(y, 4)), kept=0)


@pytest.mark.parametrize(("mode", "kept"), [("constant", 1), ("reflect", 0)])
def test_explicit_padding_with_zeros_takes_no_shift(mode, kept) -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Pad", g.batchnorm(g.x, 3), g.constant([0, 0, 1, 2, 0, 0, 0, 1]), mode=mode)
    check_fold(g.finish(g.op("Conv", y, g.normal(4, 3, 2, 2))), kept=kept)


def test_a_branch_that_only_asks_for_the_shape_stops_nothing() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    size = g.op("Cast", g.op("Shape", y), to=11)
    check_fold(g.finish(g.batchnorm(y, 4), size), kept=0)


# --- what stops


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax", "Clip", "Erf"])
def test_an_unknown_operator_is_a_boundary_on_either_side(op) -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op(op, g.op("Conv", g.x, g.normal(4, 3, 1, 1)))
    v = g.batchnorm(y, 4)
    _, report = check_fold(g.finish(g.op(op, v)), kept=1)
    assert op in report.kept[0].reason


def test_an_operator_of_another_domain_is_a_boundary() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    model = g.finish(g.batchnorm(g.op("Relu", g.x), 3))
    next(node for node in model.graph if node.op_type == "Relu").domain = "com.example"
    _, report = fold.fold_model(model)
    assert len(report.kept) == 1


# --- the shapes of reshapes


@pytest.mark.parametrize(
    ("before", "after", "blocks"),
    [
        (["n", 3, 4, 5], ["n", 60], [Block([0], [0]), Block([1, 2, 3], [1], False, [3, 4, 5], [60])]),
        (["n", 6, 4], ["n", 2, 3, 4], [Block([0], [0]), Block([1], [1, 2], False, [6], [2, 3]), Block([2], [3])]),
        (["n", 4, 1, 1], ["n", 4], [Block([0], [0]), Block([1], [1]), Block([2], []), Block([3], [])]),
        (["n", "l", 4], [None, 4], [Block([0, 1], [0], True), Block([2], [1])]),
        ([4, 6], [6, 4], [Block([0, 1], [0, 1], False, [4, 6], [6, 4])]),
        (["n", 6, 4], [None, 2, 3, 4], [Block([0], [0]), Block([1], [1, 2], False, [6], [2, 3]), Block([2], [3])]),
        (["n", 1, 6], ["n", 6], [Block([0], [0]), Block([1], []), Block([2], [1])]),
    ],
)
def test_dimensions_are_matched_in_blocks(before, after, blocks) -> None:
    assert matching_blocks(before, after) == blocks


def test_every_law_stands_in_the_table_of_laws_and_no_other() -> None:
    text = (ROOT / "docs" / "folding.md").read_text()
    section = text.split("\n## Laws\n")[1].split("\n## ")[0]
    named = {word for row in re.findall(r"^\| (.+?) \|", section, re.MULTILINE) for word in re.findall(r"\w+", row)}
    assert {word for word in named if onnx.defs.has(word)} == set(LAWS)


def test_a_model_without_batchnorm_comes_out_equal_to_the_letter() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    model = g.finish(g.op("Relu", g.op("Conv", g.x, g.normal(4, 3, 1, 1), g.constant(np.zeros(4)))))
    folded, report = fold.fold_model(model)
    assert ir.to_proto(folded) == ir.to_proto(model)
    assert report.batchnorms == 0
    assert batchnorms(folded) == 0
