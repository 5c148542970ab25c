"""Part E of a certificate: gradient ascent to the input on which the exact and the stored graph differ most.

Both graphs run in float64, so only the rounding of the weights is measured. Each climb begins at one start and steps
along the sign of the gradient, within the box of all starts. A step that does not raise the difference is undone and
halved; a climb that is stuck begins again at the next start. PyTorch is imported only when a search begins.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fold.arrays import Arrays, join_rows
from fold.artifact import TensorSpec
from fold.errors import BnfoldError
from fold.graph import dims
from fold.inputs import draw_inputs

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

Progress = Callable[[int, int, float], None]

STARTS = 16
"""The number of starts that are drawn if none are given: half of them normal, half with a large offset."""
CLIMBS = 8
"""The number of climbs at one time, shared among the outputs."""
MEMORY = 2**28
"""Bytes for the tensors of the rows that are computed together."""
FIRST_STEP, LONGEST_STEP, SHORTEST_STEP = 0.02, 0.5, 1e-3
"""Steps of a climb, as fractions of the width of the box."""
GROWTH = 1.5
"""A step that raised the difference grows by this factor."""
RESTART_DISTANCE = 0.25
"""The distance from a start, as a fraction of the box, at which a climb begins there a second time."""


@dataclass(frozen=True)
class OutputSearch:
    """The largest difference of one output that was found, relative to `scale`.

    `scale` is the largest |exact| over the starts (1 if that is 0), `start` the largest difference over the starts,
    `found` the largest over all inputs that were tried, `row` the start from which it was reached, `compared` the
    number of finite values that were compared over the starts, `inputs` the input with it.
    """

    scale: float
    start: float
    found: float
    row: int
    compared: int
    inputs: Arrays = field(repr=False, compare=False)

    @property
    def gain(self) -> float | None:
        """`found / start`; None if the starts showed no difference."""
        return self.found / self.start if self.start else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "start": self.start,
            "found": self.found,
            "gain": self.gain,
            "row": self.row,
            "compared": self.compared,
        }


@dataclass(frozen=True)
class SearchResult:
    """The result for each float output. `steps` counts the steps of each climb, `evaluations` the inputs that were
    tried in addition to the `starts`."""

    outputs: dict[str, OutputSearch]
    starts: int
    steps: int
    evaluations: int
    seed: int
    seconds: float

    def __bool__(self) -> bool:
        """False if an output has no finite value: then nothing was searched."""
        return all(output.compared for output in self.outputs.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "starts": self.starts,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "seed": self.seed,
            "seconds": round(self.seconds, 4),
            "outputs": {name: output.to_dict() for name, output in self.outputs.items()},
        }


def search_inputs(
    exact: "ir.Model",
    stored: "ir.Model",
    specs: Sequence[TensorSpec],
    *,
    starts: Arrays | None = None,
    budget_seconds: float = 10.0,
    steps: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> SearchResult:
    """The largest relative difference between the float outputs of two graphs with the same inputs and outputs.

    `starts` are inputs, batch first; without them some are drawn. All starts are measured, whatever the budget. Inputs
    stay within the minimum and maximum of each input over the starts; integers are not changed. `progress` is called
    with the steps done, the steps wanted and the largest relative difference so far. The same seed gives the same
    result, unless the budget ends the search. Raises `BnfoldError` for a graph that PyTorch cannot compute, and
    `ModuleNotFoundError` if PyTorch is not installed.
    """
    began = time.perf_counter()
    batched = _is_batched(exact, specs)
    pair = _Pair(exact, stored, batched)
    pool = _pool(specs, starts, seed, batched)
    ascent = _Ascent(pair, pool, _rows_together(exact) if batched else 1, seed)
    done = 0
    while done < steps and ascent.movable and ascent.step(began + budget_seconds):
        done += 1
        if progress is not None:
            progress(done, steps, max(output.found for output in ascent.outputs().values()))
    return SearchResult(ascent.outputs(), len(pool), done, ascent.evaluations, seed, time.perf_counter() - began)


def _is_batched(model: "ir.Model", specs: Sequence[TensorSpec]) -> bool:
    """Whether all inputs and outputs have the same free dimension first; else rows cannot be separated."""
    firsts = {(dims(value) or [None])[0] for value in (*model.graph.inputs, *model.graph.outputs)}
    return len(firsts) == 1 and isinstance(firsts.pop(), str) and all(spec.shape[0] == -1 for spec in specs)


def _rows_together(model: "ir.Model") -> int:
    """The number of rows that may be computed together, by the known sizes of the tensors of both graphs."""
    shapes = [dims(value) or [] for node in model.graph for value in node.outputs]
    numbers = sum(math.prod(size for size in shape if isinstance(size, int)) for shape in shapes)
    return max(1, MEMORY // (2 * 8 * max(1, numbers)))


def _pool(specs: Sequence[TensorSpec], starts: Arrays | None, seed: int, batched: bool) -> list[Arrays]:
    """The starts, each a batch of one, or all inputs of one run if there is no batch axis. Floats in float64."""
    given = [starts] if starts is not None else []
    if starts is None:
        draws, samples = (2, STARTS // 2) if batched else (STARTS, 1)
        for draw in range(draws):
            given.append(draw_inputs(specs, samples, seed + draw, family="offset" if draw % 2 else "normal"))
    wide = [{name: np.array(a, np.float64 if a.dtype.kind == "f" else None) for name, a in g.items()} for g in given]
    if not batched:
        return wide
    pool = [{n: a[row : row + 1] for n, a in g.items()} for g in wide for row in range(len(next(iter(g.values()))))]
    if not pool:
        raise BnfoldError("search: no samples were given; expected at least one row")
    return pool


class _Pair:
    """Both graphs on the same inputs. A difference is max|stored - exact|; a value that is not finite counts as 0."""

    def __init__(self, exact: "ir.Model", stored: "ir.Model", batched: bool) -> None:
        from fold.evaluate import TorchGraph  # noqa: PLC0415

        self._exact, self._stored, self._batched = TorchGraph(exact), TorchGraph(stored), batched

    def measure(self, inputs: Arrays) -> tuple[Arrays, dict[str, float], dict[str, int]]:
        """The difference of each row, and over all of them max|exact| and the finite values, by float output."""
        import torch  # noqa: PLC0415

        with torch.no_grad():
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            exact, stored = self._exact(tensors), self._stored(tensors)
        floats = {name: truth for name, truth in exact.items() if truth.is_floating_point() and truth.numel()}
        differences = {name: self._by_row(stored[name], truth).numpy() for name, truth in floats.items()}
        sizes = {name: float(_finite(truth.abs()).max()) for name, truth in floats.items()}
        return differences, sizes, {name: int(truth.isfinite().sum()) for name, truth in floats.items()}

    def slopes(self, inputs: Arrays, wanted: Sequence[str]) -> tuple[np.ndarray, list[Arrays]]:
        """For each row the difference of its output in `wanted`, [rows], and the gradient by float input."""
        import torch  # noqa: PLC0415

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        moved = {name: tensor.requires_grad_() for name, tensor in tensors.items() if tensor.is_floating_point()}
        exact, stored = self._exact(tensors), self._stored(tensors)
        by_row = {name: self._by_row(stored[name], exact[name]) for name in dict.fromkeys(wanted)}
        differences = torch.stack([by_row[name][row] for row, name in enumerate(wanted)])
        if not differences.requires_grad:
            return differences.numpy(), [{} for _ in wanted]
        found = torch.autograd.grad(differences.sum(), list(moved.values()), materialize_grads=True)
        gradients = {name: _finite(gradient).numpy() for name, gradient in zip(moved, found, strict=True)}
        if not self._batched:
            return differences.detach().numpy(), [gradients]
        rows = range(len(wanted))
        return differences.detach().numpy(), [{n: g[row : row + 1] for n, g in gradients.items()} for row in rows]

    def _by_row(self, stored: "torch.Tensor", exact: "torch.Tensor") -> "torch.Tensor":
        difference = _finite((stored - exact).abs())
        return difference.reshape(difference.shape[0] if self._batched else 1, -1).amax(dim=1)


def _finite(tensor: "torch.Tensor") -> "torch.Tensor":
    return tensor.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


@dataclass
class _Climb:
    """One row that climbs: its point, the difference there, the gradient and the size of the next step."""

    output: str
    row: int
    point: Arrays
    value: float = 0.0
    slope: Arrays = field(default_factory=dict)
    step: float = FIRST_STEP


class _Ascent:
    """All climbs of a search, and the largest difference of any. Inputs are lists of rows, each a batch of one."""

    def __init__(self, pair: _Pair, pool: list[Arrays], together: int, seed: int) -> None:
        self._pair, self._pool, self._together = pair, pool, together
        self._random = np.random.default_rng(seed)
        parts = [pair.measure(join_rows(pool[i : i + together])) for i in range(0, len(pool), together)]
        names = list(parts[0][0])
        differences = {name: np.concatenate([part[0][name] for part in parts]) for name in names}
        self._scales = {name: max(part[1][name] for part in parts) or 1.0 for name in names}
        self._compared = {name: sum(part[2][name] for part in parts) for name in names}
        self._before = {name: float(rows.max()) for name, rows in differences.items()}
        self._best = {name: (float(rows.max()), int(rows.argmax())) for name, rows in differences.items()}
        self._best_inputs = {name: pool[row] for name, (_, row) in self._best.items()}
        floats = [name for name, array in pool[0].items() if array.dtype.kind == "f" and array.size]
        self._box = {n: (min(row[n].min() for row in pool), max(row[n].max() for row in pool)) for n in floats}
        self._next = {name: self._starts(name, rows) for name, rows in differences.items()}
        self._climbs = [next(self._next[name]) for name in names for _ in range(max(1, CLIMBS // len(names)))]
        self.movable = bool(self._climbs and floats)
        self.evaluations = 0

    def outputs(self) -> dict[str, OutputSearch]:
        return {
            name: OutputSearch(
                scale,
                self._before[name] / scale,
                self._best[name][0] / scale,
                self._best[name][1],
                self._compared[name],
                self._best_inputs[name],
            )
            for name, scale in self._scales.items()
        }

    def step(self, deadline: float) -> bool:
        """One step of each climb. False if the deadline (by `time.perf_counter`) passed before the last one."""
        for first in range(0, len(self._climbs), self._together):
            if time.perf_counter() >= deadline:
                return False
            places = range(first, min(first + self._together, len(self._climbs)))
            climbs = [self._climbs[place] for place in places]
            points = [self._next_point(climb) for climb in climbs]
            values, slopes = self._pair.slopes(join_rows(points), [climb.output for climb in climbs])
            self.evaluations += len(climbs)
            for place, climb, point, value, slope in zip(places, climbs, points, values, slopes, strict=True):
                if not self._judge(climb, point, float(value), slope):
                    self._climbs[place] = next(self._next[climb.output])
        return True

    def _starts(self, output: str, differences: np.ndarray) -> Iterator[_Climb]:
        """All starts, the largest difference first, then points near them, without end."""
        order = [int(row) for row in np.argsort(-differences, kind="stable")]
        yield from (_Climb(output, row, self._pool[row]) for row in order)
        while True:
            for row in order:
                point = dict(self._pool[row])
                for name, (low, high) in self._box.items():
                    away = RESTART_DISTANCE * (high - low) * self._random.uniform(-1, 1, point[name].shape)
                    point[name] = np.clip(point[name] + away, low, high)
                yield _Climb(output, row, point)

    def _next_point(self, climb: _Climb) -> Arrays:
        """The next point of a climb: first its start, then a step along the sign of the gradient, within the box."""
        point = dict(climb.point)
        for name, slope in climb.slope.items():
            low, high = self._box[name]
            point[name] = np.clip(point[name] + climb.step * (high - low) * np.sign(slope), low, high)
        return point

    def _judge(self, climb: _Climb, point: Arrays, value: float, slope: Arrays) -> bool:
        """Take the step if it raises the difference, else halve it. False for a climb that is stuck."""
        if value > self._best[climb.output][0]:
            self._best[climb.output], self._best_inputs[climb.output] = (value, climb.row), point
        if not climb.slope or value > climb.value:
            climb.step = min(GROWTH * climb.step, LONGEST_STEP) if climb.slope else climb.step
            climb.point, climb.value, climb.slope = point, value, slope
            return any(array.any() for array in slope.values())
        moved = any(not np.array_equal(point[name], climb.point[name]) for name in slope)
        climb.step /= 2
        return moved and climb.step >= SHORTEST_STEP
