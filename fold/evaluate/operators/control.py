"""Loop, Scan and OptionalGetElement. The Loop of onnx 1.23 runs no iteration if the condition is left out, and stacks
scan outputs of two or more axes along an existing axis; its Scan supports neither axes nor directions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fold.errors import BnfoldError
from fold.evaluate.deadline import Deadline

ITERATIONS = 1_000_000
"""A loop that runs more often is refused: it may never end, and the evaluation takes 10 µs or more for an iteration."""


class _Body(OpRun):
    """An operator that runs a subgraph, `body`, once per iteration."""

    body: ReferenceEvaluator
    _run_body: Callable[..., list[Any]]

    def need_context(self) -> bool:
        return True  # a body may read values of the graph around it


class Loop(_Body):
    """Carried values and scan outputs, with the trip count, the condition, both or neither."""

    def _run(
        self, M: Any = None, cond: Any = None, *initial: Any, context: dict[str, Any] | None = None, **linked: Any
    ) -> tuple[Any, ...]:
        names, count_carried = self.body.input_names, len(initial)
        carried, rows = list(initial), [list[np.ndarray]() for _ in self.body.output_names[1 + count_carried :]]
        going, count, deadline = cond is None or bool(cond), 0, Deadline()
        while going and (M is None or count < int(M)):
            if count == ITERATIONS:
                raise BnfoldError(f"a Loop runs more than {ITERATIONS} iterations")
            deadline.check(self.onnx_node.name or "a Loop")
            values = [np.array(count, np.int64), np.array(going), *carried]
            written = self._run_body(
                {**(context or {}), **dict(zip(names, values, strict=True))}, attributes=linked.get("attributes")
            )
            going, carried = bool(written[0]), written[1 : 1 + count_carried]
            for row, value in zip(rows, written[1 + count_carried :], strict=True):
                row.append(value)
            count += 1
        scanned = [np.stack(row) if row else _without_rows(self, 1 + count_carried + i) for i, row in enumerate(rows)]
        return (*carried, *scanned)


class Scan(_Body):
    """Of opset 9 and later, along any axes, forwards or backwards."""

    def _run(
        self,
        *given: Any,
        context: dict[str, Any] | None = None,
        num_scan_inputs: int = 0,
        scan_input_axes: list[int] | None = None,
        scan_input_directions: list[int] | None = None,
        scan_output_axes: list[int] | None = None,
        scan_output_directions: list[int] | None = None,
        **linked: Any,
    ) -> tuple[Any, ...]:
        count = len(given) - num_scan_inputs
        carried, scanned = list(given[:count]), list(given[count:])
        sides = scan_input_directions or [0] * num_scan_inputs
        axes = scan_input_axes or [0] * num_scan_inputs
        for place, (axis, backwards) in enumerate(zip(axes, sides, strict=True)):
            moved = np.moveaxis(scanned[place], axis, 0)
            scanned[place] = moved[::-1] if backwards else moved
        rows, deadline = [list[np.ndarray]() for _ in self.body.output_names[count:]], Deadline()
        for values in zip(*scanned, strict=True):
            deadline.check(self.onnx_node.name or "a Scan")
            names = dict(zip(self.body.input_names, [*carried, *values], strict=True))
            written = self._run_body({**(context or {}), **names}, attributes=linked.get("attributes"))
            carried = written[:count]
            for row, value in zip(rows, written[count:], strict=True):
                row.append(value)
        sides = scan_output_directions or [0] * len(rows)
        axes = scan_output_axes or [0] * len(rows)
        stacked = [np.stack(row) if row else _without_rows(self, count + i) for i, row in enumerate(rows)]
        turned = [array[::-1] if backwards else array for array, backwards in zip(stacked, sides, strict=True)]
        return (*carried, *(np.moveaxis(array, 0, axis) for array, axis in zip(turned, axes, strict=True)))


def _without_rows(node: OpRun, index: int) -> np.ndarray:
    """A scan output after no iteration; `index` is its place among the outputs of the body."""
    body = next(attribute.g for attribute in node.onnx_node.attribute if attribute.name == "body")
    kind = body.output[index].type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else np.dtype(np.float64)
    return np.zeros((0, *(dim.dim_value for dim in kind.shape.dim)), dtype)


class OptionalGetElement(OpRun):
    """Of an optional, which onnx holds as a list of one element or none, or of the element itself."""

    def _run(self, X: Any) -> tuple[Any]:
        return (X[0] if isinstance(X, list) else X,)
