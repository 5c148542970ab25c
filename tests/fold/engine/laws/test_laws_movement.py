"""What moves data, one picture an operator: gauges move as the data does, in both directions, along every axis."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fold
from support.folding import GraphBuilder, check_fold

MANY = settings(max_examples=40, deadline=None, derandomize=True)


def outputs(g: GraphBuilder) -> list[ir.Value]:
    """All outputs of the last node."""
    return list(g.nodes[-1].outputs)


def computed(g: GraphBuilder, numbers: list[int]) -> ir.Value:
    """Numbers that are known only at run time."""
    return g.op("Add", g.constant(numbers), g.constant([0] * len(numbers)))


def conv(g: GraphBuilder, x: ir.Value, inputs: int, channels: int) -> ir.Value:
    return g.op("Conv", x, g.normal(channels, inputs, 1, 1), g.normal(channels))


def shaped(value: ir.Value, *shape: int | str | None) -> ir.Value:
    """What the exporter knows of a shape that inference cannot tell."""
    value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.DOUBLE)
    return value


def reason(g: GraphBuilder, *values: ir.Value, kept: int = 1) -> str:
    _, report = check_fold(g.finish(*values), kept=kept)
    return report.kept[0].reason


# --- Split


@pytest.mark.parametrize(
    ("opset", "sizes", "given"),
    [(11, [1, 4, 2], "attribute"), (13, [1, 4, 2], "input"), (18, [3, 3, 1], "number"), (20, [2, 5], "input")],
)
def test_split_cuts_the_gauge_where_it_cuts_the_channels(opset, sizes, given) -> None:
    def split(g: GraphBuilder, x: ir.Value) -> list[ir.Value]:
        read = [g.constant(sizes)] if given == "input" else []
        attributes = {"attribute": {"split": sizes}, "number": {"num_outputs": len(sizes)}, "input": {}}[given]
        g.op("Split", x, *read, axis=-3, outputs=len(sizes), **attributes)
        return outputs(g)

    g = GraphBuilder("n", 3, 4, 5, opset=opset)
    pieces = split(g, conv(g, g.x, 3, 7))
    check_fold(g.finish(*[g.batchnorm(y, n, hostile=True) for y, n in zip(pieces, sizes, strict=True)]), kept=0)
    g = GraphBuilder("n", 7, 4, 5, opset=opset)
    pieces = split(g, g.batchnorm(g.x, 7))
    check_fold(g.finish(*[conv(g, y, n, 2) for y, n in zip(pieces, sizes, strict=True)]), kept=0)


def test_split_in_equal_parts() -> None:
    g = GraphBuilder("n", 6, 4, 5, opset=11)
    g.op("Split", g.batchnorm(g.x, 6), axis=1, outputs=3)
    check_fold(g.finish(*[conv(g, y, 2, 4) for y in outputs(g)]), kept=0)


@pytest.mark.parametrize("sizes", ["known", "computed"])
def test_split_along_another_axis_of_the_same_size_passes_every_channel(sizes) -> None:
    g = GraphBuilder("n", 5, 5, 5)
    cuts = computed(g, [2, 3]) if sizes == "computed" else g.constant([2, 3])
    g.op("Split", conv(g, g.x, 5, 5), cuts, axis=2, outputs=2)
    a, b = (shaped(y, "n", 5, None, 5) for y in outputs(g))
    check_fold(g.finish(g.batchnorm(g.op("Concat", b, a, axis=2), 5, hostile=True)), kept=0)


def test_split_of_channels_by_computed_sizes_wants_one_gauge() -> None:
    g = GraphBuilder("n", 7, 4, 5)
    g.op("Split", conv(g, g.x, 7, 7), computed(g, [3, 4]), axis=1, outputs=2)
    a, _ = (shaped(y, "n", None, 4, 5) for y in outputs(g))
    check_fold(g.finish(g.batchnorm(a, 3)), kept=1)


# --- Slice


SLICES = [
    ([1], [6], [1], [2]),
    ([-1], [-100], [1], [-1]),
    ([5, 0], [0, 3], [-3, 3], [-2, 1]),
    ([-4], [2**62], [1], [1]),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
def test_slice_takes_the_gauges_of_the_channels_that_it_takes(starts, ends, axes, steps) -> None:
    taken = len(np.arange(7)[starts[0] : ends[0] : steps[0]])
    for backward in (True, False):
        g = GraphBuilder("n", 7, 4, 5)
        y = conv(g, g.x, 7, 7) if backward else g.batchnorm(g.x, 7)
        y = g.op("Slice", y, *[g.constant(numbers) for numbers in (starts, ends, axes, steps)])
        y = g.batchnorm(y, taken, hostile=True) if backward else conv(g, y, taken, 3)
        check_fold(g.finish(y), kept=0)


@pytest.mark.parametrize("axes", [{"axes": [1, 3]}, {}])
def test_slice_by_attributes(axes) -> None:
    g = GraphBuilder("n", 7, 4, 5, opset=9)
    bounds = {"starts": [2, 1], "ends": [-1, 100]} if axes else {"starts": [0, 2, 0, 1], "ends": [100, -1, 9, 9]}
    y = g.op("Slice", g.batchnorm(conv(g, g.x, 7, 7), 7, hostile=True), **bounds, **axes)
    y = g.op("Relu", g.batchnorm(conv(g, y, 4, 3), 3))
    check_fold(g.finish(y), kept=0)


def test_slice_without_axes_and_steps() -> None:
    g = GraphBuilder(4, 7, 5, 6)
    y = g.op("Slice", g.batchnorm(g.x, 7), g.constant([1, 2]), g.constant([3, 6]))
    check_fold(g.finish(conv(g, y, 4, 3)), kept=0)


def test_slice_that_is_known_at_run_time_passes_along_space_and_not_along_channels() -> None:
    g = GraphBuilder("n", 4, 4, 4)
    y = shaped(g.op("Slice", g.batchnorm(g.x, 4), g.constant([1]), computed(g, [3]), g.constant([2])), "n", 4, None, 4)
    check_fold(g.finish(conv(g, y, 4, 3)), kept=0)
    for end, axis in ((computed, GraphBuilder.constant), (GraphBuilder.constant, computed)):
        g = GraphBuilder("n", 4, 4, 4)
        y = shaped(g.op("Slice", conv(g, g.x, 4, 4), g.constant([1]), end(g, [3]), axis(g, [1])), "n", None, 4, 4)
        check_fold(g.finish(g.batchnorm(y, 2)), kept=1)


def test_a_slice_that_takes_nothing_is_nothing_to_concatenate() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = conv(g, g.x, 3, 6)
    nothing = g.op("Slice", y, g.constant([2]), g.constant([2]), g.constant([1]))
    check_fold(g.finish(g.batchnorm(g.op("Concat", nothing, y, axis=1), 6)), kept=0)


# --- Gather


@pytest.mark.parametrize("indices", [[3, 0, 2, 1], [-1, 2], [3]])
def test_gather_takes_the_gauges_of_the_channels_that_it_takes(indices) -> None:
    for backward in (True, False):
        g = GraphBuilder("n", 4, 5, 6)
        y = conv(g, g.x, 4, 4) if backward else g.batchnorm(g.x, 4)
        y = g.op("Gather", y, g.constant(indices), axis=1)
        y = g.batchnorm(y, len(indices), hostile=len(indices) > 1) if backward else conv(g, y, len(indices), 3)
        check_fold(g.finish(y), kept=0)


def test_gather_of_a_channel_twice() -> None:
    """Forward two weights read one channel; backward one channel would need two scales."""
    g = GraphBuilder("n", 3, 5, 6)
    y = g.op("Gather", g.batchnorm(g.x, 3), g.constant([2, 0, 2, 1]), axis=1)
    check_fold(g.finish(conv(g, y, 4, 2)), kept=0)
    g = GraphBuilder("n", 3, 5, 6)
    y = g.op("Gather", conv(g, g.x, 3, 3), g.constant([2, 0, 2, 1]), axis=1)
    check_fold(g.finish(g.batchnorm(y, 4)), kept=1)


@pytest.mark.parametrize("axis", [2, 3])
def test_gather_of_one_place_drops_its_axis(axis) -> None:
    g = GraphBuilder("n", 4, 4, 4)
    y = g.op("Gather", conv(g, g.x, 4, 4), g.constant(np.array(-2)), axis=axis)
    check_fold(g.finish(g.batchnorm(y, 4, hostile=True)), kept=0)


def test_gather_of_one_channel_leaves_another_axis_in_its_place() -> None:
    """[N, C, H, W] -> [N, H, W] with C = H: the BatchNorm is over H now, which no weights of C outputs take up."""
    g = GraphBuilder("n", 4, 4, 4)
    y = g.op("Gather", conv(g, g.x, 4, 4), g.constant(np.array(1)), axis=1)
    check_fold(g.finish(g.batchnorm(y, 4)), kept=1)


def test_gather_with_a_table_of_indices_makes_new_axes() -> None:
    g = GraphBuilder("n", 4, 3)
    y = g.op("Gather", g.batchnorm(g.x, 4), g.constant([[3, 1, 0], [0, -2, 1]]), axis=1)
    check_fold(g.finish(g.op("Gemm", g.op("Flatten", y), g.normal(18, 5), g.normal(5))), kept=0)


@pytest.mark.parametrize("indices", [[1, 0, 3], [2], 2])
def test_gather_with_computed_indices_passes_along_space_and_not_along_channels(indices) -> None:
    def places(g: GraphBuilder) -> ir.Value:
        numbers = np.array(indices)
        return g.op("Add", g.constant(numbers), g.constant(np.zeros_like(numbers)))

    g = GraphBuilder("n", 4, 4, 4)
    y = g.op("Gather", conv(g, g.x, 4, 4), places(g), axis=2)
    check_fold(g.finish(g.batchnorm(y, 4, hostile=True)), kept=0)
    g = GraphBuilder("n", 4, 4, 4)
    y = g.op("Gather", conv(g, g.x, 4, 4), places(g), axis=1)
    channels = len(indices) if isinstance(indices, list) else 4
    kept = 1 if channels > 1 else 0  # one scale for the one channel, whichever it is
    check_fold(g.finish(g.batchnorm(y, channels)), kept=kept)


# --- Expand and Tile


def test_expand_repeats_one_gauge() -> None:
    """[N, C] -> [N, C, 1, 1] -> [N, C, 4, 5], as the image pooling of an ASPP does."""
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("GlobalAveragePool", conv(g, g.x, 3, 4))
    y = g.op("Expand", y, g.constant([1, 1, 4, 4]))
    check_fold(g.finish(g.batchnorm(y, 4, hostile=True)), kept=0)
    g = GraphBuilder(3, 4)
    y = g.op("Expand", g.batchnorm(g.x, 4), g.constant([2, 1, 4]))
    check_fold(g.finish(g.op("MatMul", y, g.normal(4, 5))), kept=0)


def test_tile_repeats_the_gauges() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Tile", g.batchnorm(g.x, 3), g.constant([1, 2, 1, 3]))
    check_fold(g.finish(conv(g, y, 6, 2)), kept=0)
    g = GraphBuilder("n", 3, 4, 5)
    y = shaped(g.op("Tile", conv(g, g.x, 3, 3), computed(g, [1, 2, 1, 3])), "n", 6, 4, None)
    check_fold(g.finish(g.batchnorm(y, 6)), kept=1)


# --- blocks of space and depth


def repeated_batchnorm(g: GraphBuilder, x: ir.Value, channels: int, repeat) -> ir.Value:
    """A BatchNorm whose channels are alike as `repeat` lays out `channels` different ones."""
    r = g.random
    gamma, beta, mean, var = (r.uniform(0.2, 2, channels) for _ in range(4))
    return g.op("BatchNormalization", x, *[g.constant(repeat(a)) for a in (-gamma, beta, mean, var)])


@pytest.mark.parametrize("mode", ["DCR", "CRD", None])
def test_channels_that_become_a_block_of_places(mode) -> None:
    attributes = {"blocksize": 2} | ({"mode": mode} if mode else {})
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("DepthToSpace", conv(g, g.x, 3, 12), **attributes)
    check_fold(g.finish(g.batchnorm(y, 3, hostile=True)), kept=0)
    g = GraphBuilder("n", 12, 4, 5)
    y = g.op("DepthToSpace", g.batchnorm(g.x, 12), **attributes)
    assert "one gauge for the channels of a block" in reason(g, conv(g, y, 3, 2))
    repeat = {"CRD": lambda a: np.repeat(a, 4)}.get(mode or "DCR", lambda a: np.tile(a, 4))
    g = GraphBuilder("n", 12, 4, 5)
    y = g.op("DepthToSpace", repeated_batchnorm(g, g.x, 3, repeat), **attributes)
    check_fold(g.finish(conv(g, y, 3, 2)), kept=0)
    wrong = {"CRD": lambda a: np.tile(a, 4)}.get(mode or "DCR", lambda a: np.repeat(a, 4))
    g = GraphBuilder("n", 12, 4, 5)
    y = g.op("DepthToSpace", repeated_batchnorm(g, g.x, 3, wrong), **attributes)
    check_fold(g.finish(conv(g, y, 3, 2)), kept=1)


def test_a_block_of_places_that_becomes_channels() -> None:
    g = GraphBuilder("n", 3, 4, 6)
    y = g.op("SpaceToDepth", g.batchnorm(g.x, 3), blocksize=2)
    check_fold(g.finish(conv(g, y, 12, 2)), kept=0)
    g = GraphBuilder("n", 3, 4, 6)
    y = g.op("SpaceToDepth", conv(g, g.x, 3, 3), blocksize=2)
    check_fold(g.finish(repeated_batchnorm(g, y, 3, lambda a: np.tile(a, 4))), kept=0)
    g = GraphBuilder("n", 3, 4, 6)
    y = g.op("SpaceToDepth", conv(g, g.x, 3, 3), blocksize=2)
    check_fold(g.finish(g.batchnorm(y, 12)), kept=1)


# --- Pad

PADS = [0, 0, 1, 2, 0, 0, 2, 1]


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize("backward", [True, False])
def test_padding_with_what_is_there_passes_any_gauge(mode, backward) -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = conv(g, g.x, 3, 3) if backward else g.batchnorm(g.x, 3)
    y = g.op("Pad", y, g.constant(PADS), mode=mode)
    y = g.batchnorm(y, 3, hostile=True) if backward else conv(g, y, 3, 4)
    check_fold(g.finish(y), kept=0)


def test_padding_with_zeros_passes_a_scale_and_no_shift() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Pad", g.batchnorm(g.x, 3), g.constant(PADS))
    assert "pads its input with zeros" in reason(g, conv(g, y, 3, 4))
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Pad", conv(g, g.x, 3, 3), g.constant([1, 2]), g.constant(np.array(0.0)), g.constant([-1]))
    check_fold(g.finish(conv(g, g.batchnorm(y, 3, hostile=True), 3, 2)), kept=0)  # the shift goes forward


def test_padding_by_attributes() -> None:
    g = GraphBuilder("n", 3, 4, 5, opset=10)
    y = g.op("Pad", g.batchnorm(g.x, 3), pads=PADS, mode="reflect")
    check_fold(g.finish(conv(g, y, 3, 4)), kept=0)
    g = GraphBuilder("n", 3, 4, 5, opset=10)
    y = g.op("Pad", conv(g, g.x, 3, 3), pads=PADS, value=1.5)
    assert "neither zero nor infinite" in reason(g, g.batchnorm(y, 3))


@pytest.mark.parametrize("positive", [True, False])
def test_padding_with_infinity_passes_a_positive_scale_and_any_shift(positive) -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Pad", g.batchnorm(g.x, 3, positive=positive), g.constant(PADS), g.constant(np.array(-np.inf)))
    y = g.op("MaxPool", y, kernel_shape=[3, 4], strides=[2, 2])
    check_fold(g.finish(conv(g, y, 3, 4)), kept=0 if positive else 1)
    for pads in (PADS, [0, 0, 0, 0, 0, 2, 0, 0]):
        g = GraphBuilder("n", 3, 4, 5)
        y = g.op("Pad", conv(g, g.x, 3, 3), g.constant(pads), g.constant(np.array(-np.inf)))
        y = g.op("Tanh", g.batchnorm(y, 3 + pads[5], positive=positive))
        check_fold(g.finish(y), kept=0 if positive else 1)


@pytest.mark.parametrize("filling", ["another number", "computed"])
def test_padding_with_another_number_is_a_boundary(filling) -> None:
    g = GraphBuilder("n", 3, 4, 5)
    number = g.constant(np.array(1.0))
    value = number if filling == "another number" else g.op("Sub", number, number)
    y = g.op("Pad", conv(g, g.x, 3, 3), g.constant(PADS), value)
    assert "neither zero nor infinite" in reason(g, g.batchnorm(y, 3))


def test_cropping_passes_any_gauge() -> None:
    g = GraphBuilder("n", 5, 6, 7)
    y = g.op("Pad", g.batchnorm(g.x, 5), g.constant([0, -1, -1, 0, 0, -2, 0, -3]), g.constant(np.array(4.0)))
    check_fold(g.finish(conv(g, y, 2, 4)), kept=0)


def test_channels_of_zeros_take_any_scale_and_leave_the_others_their_shift() -> None:
    """The shortcut of a residual network that grows: zeros beside the channels, as PyramidNet has."""
    g = GraphBuilder("n", 3, 4, 6)
    y = g.op("Pad", g.batchnorm(g.x, 3), g.constant([0, 1, 0, 0, 0, 2, 0, 0]))
    check_fold(g.finish(conv(g, y, 6, 4)), kept=0)
    g = GraphBuilder("n", 3, 4, 6)
    stream = conv(g, g.x, 3, 4)
    branch = g.op("Relu", g.batchnorm(stream, 4, positive=True))
    branch = g.op("Conv", branch, g.normal(6, 4, 3, 3), pads=[1, 1, 1, 1])
    stream = g.op("Add", g.op("Pad", stream, g.constant([0, 0, 0, 0, 0, 2, 0, 0])), branch)
    branch = g.op("Relu", g.batchnorm(stream, 6, positive=True))
    check_fold(g.finish(g.op("Conv", branch, g.normal(3, 6, 3, 3), pads=[1, 1, 1, 1])), kept=0)


def test_channels_of_zeros_take_no_shift_themselves() -> None:
    g = GraphBuilder("n", 3, 4, 6)
    y = g.op("Pad", conv(g, g.x, 3, 3), g.constant([0, 0, 0, 0, 0, 2, 0, 0]))
    check_fold(g.finish(g.batchnorm(y, 5)), kept=1)
    g = GraphBuilder("n", 3, 4, 6)
    y = g.op("Pad", conv(g, g.x, 3, 3), g.constant([0, 0, 0, 0, 0, 2, 0, 0]))
    check_fold(g.finish(conv(g, g.batchnorm(y, 5, hostile=True), 5, 2)), kept=0)


def test_channels_of_zeros_and_a_border_of_zeros() -> None:
    g = GraphBuilder("n", 3, 4, 6)
    y = g.op("Pad", g.batchnorm(g.x, 3), g.constant([0, 1, 1, 0, 0, 2, 0, 0]))
    assert "pads its input with zeros" in reason(g, conv(g, y, 6, 4))


def test_padding_by_computed_amounts_wants_one_gauge() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = shaped(g.op("Pad", conv(g, g.x, 3, 3), computed(g, PADS), mode="edge"), "n", 3, None, None)
    check_fold(g.finish(g.batchnorm(y, 3)), kept=1)
    for mode, kept in (("edge", 0), ("constant", 1)):
        g = GraphBuilder("n", 3, 4, 5)
        y = g.op("Pad", g.batchnorm(g.x, 3), computed(g, [1, 2, 2, 0]), None, g.constant([2, 3]), mode=mode)
        check_fold(g.finish(conv(g, y, 3, 4)), kept=kept)


# --- Resize


RESIZES = [
    {"mode": "nearest"},
    {"mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel", "antialias": 1},
    {"mode": "cubic", "coordinate_transformation_mode": "half_pixel_symmetric", "cubic_coeff_a": -0.5},
    {"mode": "cubic", "exclude_outside": 1},
    {"mode": "cubic", "antialias": 1},
]


@pytest.mark.parametrize("attributes", RESIZES, ids=str)
@pytest.mark.parametrize("scales", [[1, 1, 2, 1.7], [1, 1, 0.6, 0.5]])
def test_resize_passes_any_gauge(attributes, scales) -> None:
    for backward in (True, False):
        g = GraphBuilder("n", 3, 4, 6)
        y = conv(g, g.x, 3, 3) if backward else g.batchnorm(g.x, 3)
        y = g.op("Resize", y, None, g.constant(np.array(scales, np.float32)), **attributes)
        y = g.batchnorm(y, 3, hostile=True) if backward else conv(g, y, 3, 4)
        check_fold(g.finish(y), kept=0)


@pytest.mark.parametrize(
    ("sizes", "attributes", "channels", "kept"),
    [
        ([2, 3, 7, 9], {}, 3, 0),
        ([7, 9], {"axes": [2, 3]}, 3, 0),
        ([7, 9], {"axes": [-2, -1], "keep_aspect_ratio_policy": "not_larger"}, 3, 0),
        ([2, 3, 4, 5], {"keep_aspect_ratio_policy": "not_larger"}, 3, 1),  # 3 * 5/6 rounds to 3 channels, interpolated
        ([2, 5, 7, 9], {}, 5, 1),
    ],
)
def test_resize_by_sizes(sizes, attributes, channels, kept) -> None:
    g = GraphBuilder(2, 3, 4, 6)
    y = g.op("Resize", conv(g, g.x, 3, 3), None, None, g.constant(sizes), mode="linear", **attributes)
    check_fold(g.finish(g.batchnorm(y, channels)), kept=kept)


def test_resize_by_computed_sizes_is_judged_by_its_shape() -> None:
    """The exporter's way: the own batch and channels, and sizes of space that come from elsewhere."""
    g = GraphBuilder("n", 3, 3, 3)
    y = conv(g, g.x, 3, 3)
    sizes = g.op("Concat", g.op("Shape", y, start=0, end=2), computed(g, [5, 7]), axis=0)
    y = shaped(g.op("Resize", y, None, None, sizes, mode="nearest"), "n", 3, 5, 7)
    check_fold(g.finish(g.batchnorm(y, 3)), kept=0)
    g = GraphBuilder("n", 3, 3, 3, opset=11)
    y, empty = conv(g, g.x, 3, 3), g.constant(np.zeros(0, np.float32))  # sizes beside empty scales, as in opset 11
    sizes = g.op(
        "Concat", g.op("Slice", g.op("Shape", y), g.constant([0]), g.constant([2])), computed(g, [5, 7]), axis=0
    )
    y = shaped(g.op("Resize", y, empty, empty, sizes, mode="linear"), "n", 3, None, None)
    check_fold(g.finish(g.batchnorm(y, 3)), kept=0)


def test_resize_by_computed_scales_wants_one_gauge() -> None:
    g = GraphBuilder("n", 3, 4, 6)
    scales = g.op("Mul", g.constant(np.array([1, 1, 2, 2], np.float32)), g.constant(np.ones(4, np.float32)))
    y = shaped(g.op("Resize", conv(g, g.x, 3, 3), None, scales, mode="nearest"), "n", 3, None, None)
    check_fold(g.finish(g.batchnorm(y, 3)), kept=1)


def test_resize_over_channels_of_the_same_size_as_space() -> None:
    g = GraphBuilder("n", 4, 4, 4)
    y = g.op("Resize", conv(g, g.x, 4, 4), None, g.constant(np.array([1, 2, 1, 1], np.float32)), mode="nearest")
    check_fold(g.finish(g.batchnorm(y, 8)), kept=1)


def test_resize_that_fills_with_a_number_is_a_boundary() -> None:
    g = GraphBuilder("n", 3, 4, 6)
    roi = g.constant(np.array([0, 0, -0.5, 0, 1, 1, 1.5, 1], np.float32))
    scales = g.constant(np.array([1, 1, 2, 2], np.float32))
    mode = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.0}
    assert "tf_crop_and_resize" in reason(g, g.batchnorm(g.op("Resize", conv(g, g.x, 3, 3), roi, scales, **mode), 3))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10), ("Resize", 11)])
def test_older_ways_to_resize(op, opset, mode) -> None:
    g = GraphBuilder("n", 3, 4, 6, opset=opset)
    scales = np.array([1, 1, 2, 3], np.float32)
    read = {7: [], 9: [scales], 10: [scales], 11: [np.zeros(0, np.float32), scales]}[opset]
    attributes = {"scales": scales.tolist()} if opset == 7 else {}
    y = g.op(op, conv(g, g.x, 3, 4), *[g.constant(array) for array in read], mode=mode, **attributes)
    check_fold(g.finish(g.batchnorm(y, 4, hostile=True)), kept=0)


# --- types


def test_casts_between_floats_pass_and_others_do_not() -> None:
    for to, kept in ((ir.DataType.DOUBLE, 0), (ir.DataType.FLOAT, 0), (ir.DataType.INT64, 1)):
        g = GraphBuilder("n", 3, 4, 6)
        y = g.op("Cast", conv(g, g.x, 3, 3), to=int(to))
        y = g.op("CastLike", y, g.x) if to == ir.DataType.DOUBLE else g.op("Cast", y, to=11)
        _, report = fold.fold_model(g.finish(g.batchnorm(y, 3)))
        assert len(report.kept) == kept
        assert not kept or "no float" in report.kept[0].reason
    g = GraphBuilder("n", 3, 4, 6)
    y = g.op("CastLike", g.op("Cast", conv(g, g.x, 3, 3), to=11), g.normal(1))
    check_fold(g.finish(g.batchnorm(y, 3, hostile=True)), kept=0)


def test_dropout_in_training_mode_is_a_boundary() -> None:
    for training, kept in ((False, 0), (True, 1)):
        g = GraphBuilder("n", 3, 4, 6)
        ratio = g.constant(np.array(0.5))
        y = g.op("Dropout", conv(g, g.x, 3, 3), ratio, g.constant(np.array(training)))
        _, report = fold.fold_model(g.finish(g.batchnorm(y, 3)))
        assert len(report.kept) == kept


# --- Concat and Reshape where sizes are not known


def test_concatenation_along_an_axis_of_unknown_size() -> None:
    g = GraphBuilder("n", 3, "h", 3)
    a, b = (conv(g, g.x, 3, 4) for _ in range(2))
    check_fold(g.finish(g.batchnorm(g.op("Concat", a, b, g.op("Relu", b), axis=2), 4, positive=True)))
    g = GraphBuilder("n", 3, "h", 3)
    a, b = (conv(g, g.x, 3, 4) for _ in range(2))
    check_fold(g.finish(g.batchnorm(g.op("Concat", a, b, axis=-2), 4, hostile=True)), kept=0)


def test_two_scales_cannot_meet_along_an_axis_of_unknown_size() -> None:
    g = GraphBuilder("n", 3, "h", 3)
    y = g.op("Concat", g.batchnorm(g.x, 3), g.batchnorm(g.x, 3), axis=2)
    check_fold(g.finish(conv(g, y, 3, 4)), kept=1)


def test_a_tensor_without_elements_is_a_boundary() -> None:
    g = GraphBuilder(2, 0, 4)
    y = g.op("Reshape", g.x, g.constant([0, 8]), allowzero=1)
    _, report = fold.fold_model(g.finish(g.batchnorm(y, 8)))
    assert "cannot be followed" in report.kept[0].reason


# --- any geometry: sizes that coincide, and the channels on any axis


@st.composite
def geometries(draw: st.DrawFn) -> tuple[list[int], list[int], int, bool]:
    """A shape, how it is permuted before the operator, a seed, and whether weights stand before or behind."""
    shape = draw(st.lists(st.integers(2, 5), min_size=4, max_size=4))
    return shape, draw(st.permutations(range(4))), draw(st.integers(0, 999)), draw(st.booleans())


def check_anywhere(geometry, move, *, kept: int | None = None) -> None:
    """x -> Conv -> Transpose -> operator -> Transpose -> BatchNorm, or x -> BatchNorm -> ... -> Conv.

    `move(g, y, shape)` adds the operator and returns its output and that one's shape.
    """
    shape, permutation, seed, backward = geometry
    g = GraphBuilder(*shape, seed=seed)
    y = conv(g, g.x, shape[1], shape[1]) if backward else g.batchnorm(g.x, shape[1])
    y, moved = move(g, g.op("Transpose", y, perm=permutation), [shape[axis] for axis in permutation])
    y = g.op("Transpose", y, perm=np.argsort(permutation).tolist())
    channels = moved[permutation.index(1)]
    y = g.batchnorm(y, channels, hostile=channels > 1) if backward else conv(g, y, channels, 3)
    check_fold(g.finish(y), kept=kept)


@MANY
@given(geometries(), st.integers(0, 3), st.data())
def test_split_anywhere(geometry, axis, data) -> None:
    def move(g: GraphBuilder, y: ir.Value, shape: list[int]) -> tuple[ir.Value, list[int]]:
        first = data.draw(st.integers(1, shape[axis] - 1))
        g.op("Split", y, g.constant([first, shape[axis] - first]), axis=axis, outputs=2)
        which = data.draw(st.integers(0, 1))
        shape[axis] = [first, shape[axis] - first][which]
        return outputs(g)[which], shape

    check_anywhere(geometry, move, kept=0)


@MANY
@given(geometries(), st.integers(0, 3), st.data())
def test_slice_anywhere(geometry, axis, data) -> None:
    def move(g: GraphBuilder, y: ir.Value, shape: list[int]) -> tuple[ir.Value, list[int]]:
        n = shape[axis]
        bounds = data.draw(
            st.tuples(
                st.integers(-n - 2, n + 2), st.integers(-n - 2, n + 2), st.sampled_from([-3, -2, -1, 1, 2, 3])
            ).filter(lambda b: len(range(n)[b[0] : b[1] : b[2]]) > 0)
        )
        start, end, step = bounds
        shape[axis] = len(range(n)[start:end:step])
        read = [g.constant([number]) for number in (start, end, axis, step)]
        return g.op("Slice", y, *read), shape

    check_anywhere(geometry, move, kept=0)


@MANY
@given(geometries(), st.integers(0, 3), st.data())
def test_gather_anywhere(geometry, axis, data) -> None:
    def move(g: GraphBuilder, y: ir.Value, shape: list[int]) -> tuple[ir.Value, list[int]]:
        n = shape[axis]
        indices = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=6))
        shape[axis] = len(indices)
        return g.op("Gather", y, g.constant(indices), axis=axis), shape

    check_anywhere(geometry, move, kept=None if geometry[3] else 0)


@MANY
@given(geometries(), st.sampled_from(["constant", "reflect", "edge", "wrap"]), st.data())
def test_pad_anywhere(geometry, mode, data) -> None:
    def move(g: GraphBuilder, y: ir.Value, shape: list[int]) -> tuple[ir.Value, list[int]]:
        axes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True))
        amounts = data.draw(
            st.lists(st.tuples(st.integers(0, 1), st.integers(-1, 1)), min_size=len(axes), max_size=len(axes))
        )
        for axis, (before, behind) in zip(axes, amounts, strict=True):
            shape[axis] += before + behind
        pads = [before for before, _ in amounts] + [behind for _, behind in amounts]
        return g.op("Pad", y, g.constant(pads), None, g.constant(axes), mode=mode), shape

    check_anywhere(geometry, move)


@MANY
@given(geometries(), st.sampled_from(RESIZES), st.data())
def test_resize_anywhere(geometry, attributes, data) -> None:
    def move(g: GraphBuilder, y: ir.Value, shape: list[int]) -> tuple[ir.Value, list[int]]:
        axes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True))
        sizes = data.draw(st.lists(st.integers(2, 6), min_size=len(axes), max_size=len(axes)))
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size
        return g.op("Resize", y, None, None, g.constant(sizes), axes=axes, **attributes), shape

    check_anywhere(geometry, move)


@MANY
@given(geometries(), st.sampled_from(["DCR", "CRD"]), st.booleans())
def test_depth_to_space_and_back_anywhere(geometry, mode, back) -> None:
    def move(g: GraphBuilder, y: ir.Value, shape: list[int]) -> tuple[ir.Value, list[int]]:
        y = g.op("Tile", y, g.constant([1, 4, 2, 2]))
        n, c, h, w = shape[0], shape[1] * 4, shape[2] * 2, shape[3] * 2
        y = g.op("DepthToSpace", y, blocksize=2, mode=mode)
        if back:
            return g.op("SpaceToDepth", y, blocksize=2), [n, c, h, w]
        return y, [n, c // 4, h * 2, w * 2]

    check_anywhere(geometry, move)
