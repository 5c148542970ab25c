"""Random roundings of weights: as far as rounding goes, alike where rounding is alike; and the limit that they give."""

import numpy as np
import onnx_ir as ir
import pytest

from fold.evaluate.jumps import jumping
from fold.evaluate.random_rounding import MOST_DRAWS, RISK, MovedWeights, RandomRounding, rounding_limits
from support.folding import GraphBuilder


def products(weights: np.ndarray, dtype: ir.DataType) -> RandomRounding:
    """The graph y = w*x with exact weights that `dtype` will store."""
    g = GraphBuilder("n", weights.size)
    exact = g.finish(g.op("Mul", g.x, g.constant(weights, "w")))
    exact.graph.initializers["w"].type = ir.TensorType(dtype)
    return RandomRounding(exact)


def drawn(weights: np.ndarray, dtype: ir.DataType = ir.DataType.FLOAT, draws: int = 8) -> np.ndarray:
    """Random roundings of weights, [draws, weights]."""
    random, ones = products(weights, dtype), {"ones": {"x": np.ones((1, weights.size))}}
    return np.concatenate([next(iter(random(ones, draw)["ones"].values())) for draw in range(draws)])


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16], ids=lambda d: d.name)
def test_an_error_is_at_most_half_a_unit_in_the_last_place_and_as_large_as_rounding_s(dtype) -> None:
    w = np.random.default_rng(0).standard_normal(4000)
    rounded = w.astype(dtype.numpy())
    halves = np.abs(np.nextafter(rounded, rounded.dtype.type(0)).astype(np.float64) - rounded.astype(np.float64))
    errors = drawn(w, dtype) - w
    assert (np.abs(errors) <= halves).all()  # half a unit, or all of it right above a power of two
    real = np.sqrt(np.mean((rounded.astype(np.float64) - w) ** 2))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(real, rel=0.1)
    correlation = np.corrcoef(errors / np.abs(w))
    assert np.abs(correlation - np.eye(len(errors))).max() < 0.1


def test_what_rounds_to_itself_or_to_zero_is_not_random() -> None:
    w = np.array([0.0, 1.5, -3.0, 2.0**-126, 1e-40, np.inf, -np.inf])
    assert (drawn(w) == np.array([0.0, 1.5, -3.0, 2.0**-126, 0.0, np.inf, -np.inf])).all()
    small = 3.1e-7  # a subnormal of float16 is stored as its neighbour
    errors = drawn(np.array([small]), ir.DataType.FLOAT16, 100) - small
    assert 0.8 * 2.0**-25 < np.abs(errors).max() <= 2.0**-25


def test_numbers_that_rounding_treats_alike_get_the_same_error() -> None:
    errors = drawn(np.array([0.1, 0.1, -0.1, 0.4, 0.3])) - np.array([0.1, 0.1, -0.1, 0.4, 0.3])
    np.testing.assert_allclose(errors[:, 1:4], errors[:, :1] * [1, -1, 4], rtol=1e-6)
    assert not np.allclose(errors[:, 4], errors[:, 0], rtol=0.1)


def test_stored_weights_move_by_as_many_roundings_as_are_asked_for() -> None:
    g = GraphBuilder("n", 3)
    tensors = [np.array([[0.3, 7.0, -0.5]], np.float32), np.array([1e-3, 1.1, 2.0], np.float32)]
    constant = g.op("Constant", value=ir.tensor(tensors[1]))
    low, high = g.constant(np.float32(-0.7)), g.constant(np.float32(0.7))  # settings
    model = g.finish(g.op("Mul", g.x, g.constant(tensors[0])), g.op("Clip", g.op("Add", g.x, constant), low, high))
    moved = MovedWeights(model, 4)
    units = 4 * 2.0**-24 * np.array([0.3, 0, 0.5]), 4 * 2.0**-24 * np.sqrt(np.mean(tensors[1].astype(float) ** 2))
    many = [list(moved({"x": np.ones((1, 3))}, draw).values()) for draw in range(50)]
    errors = np.abs(np.concatenate([product for product, _ in many]) - tensors[0]).max(axis=0)
    assert (errors <= units[0]).all()
    assert (errors >= 0.8 * units[0]).all()
    zeros = np.concatenate(
        [moved({"x": np.zeros((1, 3))}, draw)[list(model.graph.outputs)[1].name] for draw in range(50)]
    )
    assert 0.8 * units[1] < np.abs(zeros[:, 0] - tensors[1][0]).max() <= units[1]
    assert (zeros[:, 1:] == np.float32(0.7)).all()


class Normal:
    """Outputs of a number of values with errors of standard deviation 1, but for the first draws, which are small."""

    def __init__(self, values: int, small: int = 0) -> None:
        self._random, self._values, self._small = np.random.default_rng(1), values, small

    def __call__(self, draw: int) -> dict[str, np.ndarray]:
        error = self._random.standard_normal((1, self._values))
        return {"y": 1e-3 * error if draw < self._small else error}


def limit(normal: Normal, values: int, gap: float, floor: float = 0.0) -> tuple[float, int]:
    limits, draws = rounding_limits(normal, {"y": np.zeros((1, values))}, {"y": gap}, {"y": floor})
    return limits["y"], draws


def test_the_limit_follows_from_the_standard_deviation() -> None:
    found, draws = limit(Normal(1000), 1000, 1.0)
    assert draws == 3
    assert 1 < found / np.sqrt(2 * np.log(2000 / RISK)) < 3  # the largest of 1000 estimates from three draws
    assert limit(Normal(1000), 1000, 1.0, floor=99.0) == (99.0, 3)


def test_there_are_more_draws_while_the_first_may_have_been_small_by_chance() -> None:
    found, draws = limit(Normal(1, small=3), 1, 3.0)
    assert draws > 3
    assert found > 3
    assert limit(Normal(1, small=3), 1, 1e6)[1] == 3  # not that small


@pytest.mark.parametrize("times", [1.3, 5.0, 1e4])
def test_a_fault_stays_beyond_the_limit(times) -> None:
    fault = times * np.sqrt(2 * np.log(2 / RISK))
    found, draws = limit(Normal(1), 1, fault)
    assert found < fault
    assert draws <= MOST_DRAWS


def test_outputs_behind_operators_that_jump_are_named() -> None:
    g = GraphBuilder("n", 4, seed=8)
    moved = g.op("Mul", g.x, g.constant(np.ones(4), "w"))
    chosen = g.op("Where", g.op("Less", moved, g.constant(0.0)), moved, g.constant(np.ones(4)))
    whole = g.op("Cast", moved, to=ir.DataType.INT64)
    whole.type = ir.TensorType(ir.DataType.INT64)
    wide = g.op("Cast", moved, to=ir.DataType.DOUBLE)
    sizes = g.op("Cast", g.op("Shape", moved), to=ir.DataType.DOUBLE)
    smooth = g.op("Mul", g.op("Relu", wide), g.op("ReduceSum", sizes, keepdims=0))
    free = g.op("Floor", g.x)  # reads no weight
    model = g.finish(chosen, whole, smooth, free)
    names = [value.name for value in model.graph.outputs]
    assert jumping(model, {"w"}) == ({names[0], names[1]}, ("Cast", "Less"))
    assert jumping(model, set()) == (set(), ())
