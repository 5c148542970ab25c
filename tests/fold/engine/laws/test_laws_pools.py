"""Pools and reductions, one picture an operator: many places become one, so their gauges must be the same."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fold.graph.reading import padded
from support.folding import GraphBuilder, check_fold


def conv(g: GraphBuilder, x: ir.Value, inputs: int, channels: int) -> ir.Value:
    return g.op("Conv", x, g.normal(channels, inputs, 1, 1), g.normal(channels))


def reduce(g: GraphBuilder, op: str, x: ir.Value, axes: list[int], **attributes: int) -> ir.Value:
    """With the axes as the operator set wants them: ReduceSum took them as an input in 13, the others in 18."""
    as_input = g._opset >= (13 if op == "ReduceSum" else 18)
    return g.op(op, x, g.constant(axes), **attributes) if as_input else g.op(op, x, axes=axes, **attributes)


# --- reductions over space


@pytest.mark.parametrize("opset", [11, 20])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean"])
def test_reduction_over_space(op, keepdims, opset) -> None:
    """Backward into the weights before it, and forward into those behind it; an extremum lets no sign pass."""
    extremum = op in ("ReduceMax", "ReduceMin")
    g = GraphBuilder("n", 3, 4, 5, opset=opset)
    y = reduce(g, op, conv(g, g.x, 3, 6), [-1, 2], keepdims=keepdims)
    check_fold(g.finish(g.batchnorm(y, 6, hostile=not extremum, positive=extremum)), kept=0)
    for positive in (True, False):
        g = GraphBuilder("n", 3, 4, 5, opset=opset)
        y = reduce(g, op, g.batchnorm(g.x, 3, positive=positive), [-1, 2], keepdims=keepdims)
        y = g.op("Flatten", y) if keepdims else y
        kept = 1 if extremum and not positive else 0
        check_fold(g.finish(g.op("Gemm", y, g.normal(3, 7), g.normal(7))), kept=kept)


def test_a_negative_scale_behind_an_extremum_goes_forward() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.batchnorm(reduce(g, "ReduceMax", conv(g, g.x, 3, 6), [2, 3]), 6)
    check_fold(g.finish(conv(g, y, 6, 2)), kept=0)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean"])
def test_reduction_over_one_axis_of_equal_sizes(op) -> None:
    """[N, 5, 5, 5]: without H the channels stay on axis 1, without C it is H that comes there."""
    g = GraphBuilder("n", 5, 5, 5)
    y = reduce(g, op, conv(g, g.x, 5, 5), [2], keepdims=0)
    check_fold(g.finish(g.batchnorm(y, 5, positive=True)), kept=0)
    g = GraphBuilder("n", 5, 5, 5)
    y = reduce(g, op, conv(g, g.x, 5, 5), [1], keepdims=0)
    check_fold(g.finish(g.batchnorm(y, 5, positive=True)), kept=1)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean"])
def test_reduction_over_channels_stops_scales_that_differ(op) -> None:
    g = GraphBuilder("n", 4, 6, 7)
    y = reduce(g, op, g.batchnorm(g.x, 4, positive=True), [1])
    check_fold(g.finish(g.op("Conv", y, g.normal(3, 1, 1, 1))), kept=1)


@pytest.mark.parametrize(("noop", "kept"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("axes", [[], None])
def test_reduction_without_axes_takes_all_or_none(op, noop, kept, axes) -> None:
    g = GraphBuilder(2, 4, 6, 7)
    read = [] if axes is None else [g.constant(np.zeros(0, np.int64))]
    y = g.op(op, g.batchnorm(g.x, 4, positive=True), *read, noop_with_empty_axes=noop)
    y = y if noop else g.op("Expand", y, g.constant([2, 4, 1, 1]))
    check_fold(g.finish(conv(g, y, 4, 3)), kept=kept)


def test_reduction_over_axes_that_are_known_at_run_time_is_a_boundary() -> None:
    g = GraphBuilder("n", 4, 6, 7)
    axes = g.op("Add", g.constant([2]), g.constant([1]))
    y = g.op("ReduceSum", conv(g, g.x, 4, 4), axes)
    y.shape, y.type = ir.Shape(["n", 4, 6, 1]), ir.TensorType(ir.DataType.DOUBLE)
    _, report = check_fold(g.finish(g.batchnorm(y, 4)), kept=1)
    assert "takes its axes at run time" in report.kept[0].reason
    assert report.kept[0].culprit == "ReduceSum_2"


# --- how often a sum takes the shift


@pytest.mark.parametrize("axes", [[2], [3], [2, 3], [0, 2]])
def test_a_sum_takes_the_shift_as_often_as_it_has_elements(axes) -> None:
    g = GraphBuilder(2, 3, 4, 5)
    y = reduce(g, "ReduceSum", g.batchnorm(g.x, 3), axes)
    check_fold(g.finish(conv(g, y, 3, 2)), kept=0)


def test_a_sum_of_one_element_is_that_element() -> None:
    g = GraphBuilder("n", 3, 1, 5)
    y = reduce(g, "ReduceSum", g.batchnorm(g.x, 3), [2])
    check_fold(g.finish(conv(g, y, 3, 2)), kept=0)


def test_a_sum_of_an_unknown_number_of_elements_takes_no_shift() -> None:
    g = GraphBuilder("n", 3, "h", 5)
    y = reduce(g, "ReduceSum", g.batchnorm(g.x, 3), [2, 3])
    _, report = check_fold(g.finish(conv(g, y, 3, 2)), kept=1)
    assert "whose number is not known" in report.kept[0].reason
    g = GraphBuilder("n", 3, "h", 5)
    y = g.batchnorm(reduce(g, "ReduceSum", conv(g, g.x, 3, 6), [2, 3]), 6, hostile=True)
    check_fold(g.finish(conv(g, y, 6, 2)), kept=0)  # the scale goes back and the shift forward


# --- pools


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 1, 0, 1, 0]},
        {"ceil_mode": 1, "strides": [2, 3, 2]},
        {"dilations": [2, 1, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 1, 3]},
        {"auto_pad": "SAME_LOWER"},
    ],
    ids=str,
)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools_of_any_rank(op, attributes, rank) -> None:
    """Neither what is padded nor what a window has beyond its end is in a maximum or a mean."""
    attributes = {
        name: value if not isinstance(value, list) else value[:rank] + (value[3 : 3 + rank] if name == "pads" else [])
        for name, value in attributes.items()
    }
    sizes, kernel = (6, 7, 5)[:rank], [3, 2, 2][:rank]
    for backward in (True, False):
        g = GraphBuilder("n", 4, *sizes)
        y = g.op("Conv", g.x, g.normal(4, 4, *[1] * rank)) if backward else g.batchnorm(g.x, 4, positive=True)
        y = g.op(op, y, kernel_shape=kernel, **attributes)
        y = g.batchnorm(y, 4, positive=True) if backward else g.op("Conv", y, g.normal(5, 4, *[1] * rank))
        check_fold(g.finish(y), kept=0)


def test_the_indices_of_a_maximum_stay_as_they_are() -> None:
    g = GraphBuilder("n", 3, 7, 6)
    y = g.op("MaxPool", conv(g, g.x, 3, 4), kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 1, 1], outputs=2)
    indices = g.nodes[-1].outputs[1]
    indices.type = ir.TensorType(ir.DataType.INT64)
    v = g.batchnorm(y, 4, positive=True)
    check_fold(g.finish(v, indices), kept=0)
    g = GraphBuilder("n", 3, 7, 6)
    y = g.op("MaxPool", conv(g, g.x, 3, 4), kernel_shape=[2, 3], outputs=2)
    indices = g.nodes[-1].outputs[1]
    indices.type = ir.TensorType(ir.DataType.INT64)
    check_fold(g.finish(g.batchnorm(y, 4), indices), kept=1)


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        ({"auto_pad": "SAME_UPPER", "kernel_shape": [2, 3], "strides": [2, 3]}, 0),  # 6 by 9 places: nothing to pad
        ({"auto_pad": "SAME_LOWER", "kernel_shape": [1, 1]}, 0),
        ({"auto_pad": "SAME_UPPER", "kernel_shape": [2, 3], "strides": [2, 2]}, 1),
        ({"auto_pad": "SAME_UPPER", "kernel_shape": [2, 3], "strides": [4, 3]}, 0),
        ({"auto_pad": "VALID", "kernel_shape": [2, 3]}, 0),
        ({"kernel_shape": [2, 3], "pads": [0, 0, 0, 1]}, 1),
        ({"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}, 1),
        ({"kernel_shape": [2, 3]}, 0),
    ],
)
def test_a_mean_that_counts_its_padding_takes_no_shift_if_there_is_any(attributes, kept) -> None:
    g = GraphBuilder("n", 4, 6, 9)
    y = g.op("AveragePool", g.batchnorm(g.x, 4), count_include_pad=1, **attributes)
    _, report = check_fold(g.finish(conv(g, y, 4, 5)), kept=kept)
    assert not kept or "counts the zeros" in report.kept[0].reason


@pytest.mark.parametrize(
    ("size", "kernel", "attributes", "pads"),
    [
        ("h", 1, {"strides": [2, 1]}, False),
        ("h", 3, {"strides": [3, 1]}, True),
        (9, 3, {"strides": [3, 1]}, False),
        (8, 3, {"strides": [3, 1]}, True),
        (8, 3, {}, True),
        (9, 3, {"strides": [3, 1], "dilations": [1, 2]}, True),
    ],
)
def test_same_padding_of_a_convolution_may_be_none(size, kernel, attributes, pads) -> None:
    g = GraphBuilder("n", 4, size, 5)
    y = g.op("Conv", g.batchnorm(g.x, 4), g.normal(3, 4, kernel, 1), auto_pad="SAME_UPPER", **attributes)
    model = g.finish(y)
    assert padded(next(node for node in model.graph if node.op_type == "Conv")) == pads
    if "dilations" not in attributes:  # which onnx's reference implementation does not pad as others do
        check_fold(model, kept=None if pads else 0)


# --- any geometry: sizes that coincide, and the channels on any axis


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
    st.permutations(range(4)),
    st.lists(st.integers(-4, 3), min_size=1, max_size=3),
    st.sampled_from(["ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean"]),
    st.booleans(),
    st.integers(0, 999),
)
def test_reduction_anywhere(shape, permutation, axes, op, backward, seed) -> None:
    reduced = {axis % 4 for axis in axes}
    channels = 1 if permutation.index(1) in reduced else shape[1]
    g = GraphBuilder(*shape, seed=seed)
    y = conv(g, g.x, shape[1], shape[1]) if backward else g.batchnorm(g.x, shape[1])
    y = reduce(g, op, g.op("Transpose", y, perm=permutation), sorted(axis - 4 for axis in reduced))
    y = g.op("Transpose", y, perm=np.argsort(permutation).tolist())
    y = g.batchnorm(y, channels, hostile=channels > 1) if backward else conv(g, y, channels, 3)
    passes = op in ("ReduceSum", "ReduceMean") and (channels == shape[1] or backward)
    check_fold(g.finish(y), kept=0 if passes else None)
