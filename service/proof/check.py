"""What one equivalence check computes: parts C and D of the certificate for the session that serves, A, B and E on
request for the graphs that it was made from.

Everything here runs on a thread beside the batches. `halt` is called before each step and each batch of rows, and
raises once nobody waits for the answer any more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fold.arrays import Arrays

if TYPE_CHECKING:
    from fold.arrays import Run
    from fold.proof import Reference
    from service.repository import Model

PARTS = ("algebra", "rounding", "search")
DEFAULT_SAMPLES = 16
DEFAULT_SEARCH_SECONDS = 5.0

Halt = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """Tensors to check on, or the number of rows to draw and their seed; and which parts beside C and D."""

    given: Arrays | None = field(default=None, repr=False)
    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    parts: tuple[str, ...] = ()
    search_seconds: float = DEFAULT_SEARCH_SECONDS


def prove(model: "Model", reference: "Reference", asked: Asked, max_rows: int, halt: Halt) -> dict[str, Any]:
    """The answer of the endpoint. Rows are computed at most `max_rows` at a time, as they are served.

    Raises `BnfoldError` for a model that cannot be proven, `ModuleNotFoundError` where a part needs torch.
    """
    from fold.inputs import draw_inputs  # noqa: PLC0415  # a predict never pays for this
    from fold.proof import compare  # noqa: PLC0415

    if asked.given is None:
        inputs = draw_inputs(model.manifest.inputs, asked.samples, asked.seed)
    else:
        inputs = {name: np.array(array) for name, array in asked.given.items()}  # views of a body need not be aligned
    verdict = compare(
        _Halting(reference, halt),
        _halting(model.session.run_in_all, halt),
        inputs,
        seed=asked.seed if asked.given is None else None,
        provider=model.session.provider,
        precision=model.manifest.precision_on(model.session.provider),
        rows=max_rows if model.session.signature.batched else 0,
    )
    answer = {"model_name": model.name, "model_version": model.version, **verdict.to_dict()}
    if not asked.parts:
        return answer
    parts = _of_graphs(model, inputs, asked, halt)
    failed = [name for name in ("algebra", "rounding") if name in parts and not parts[name]["holds"]]
    if failed:
        located = parts["located"]
        where = f"; {located['message']}" if located else ""
        answer["message"] = f"NOT equivalent: {', '.join(f'{name} does not hold' for name in failed)}{where}"
        answer["equivalent"] = False
    return answer | parts


def _of_graphs(model: "Model", inputs: Arrays, asked: Asked, halt: Halt) -> dict[str, Any]:
    """Parts A, B and E, as far as they were asked for, by name."""
    from fold.arrays import first_rows  # noqa: PLC0415
    from fold.artifact import all_batched  # noqa: PLC0415
    from fold.engine import fold_graph  # noqa: PLC0415
    from fold.graph import read_graph  # noqa: PLC0415
    from fold.inputs import draw_inputs  # noqa: PLC0415
    from fold.precision import as_stored  # noqa: PLC0415
    from fold.proof import (  # noqa: PLC0415  # as above  # noqa: PLC0415
        BOUNDED_ROWS,
        check_algebra,
        check_rounding,
        find_truth,
        load_unfolded,
        of_algebra,
        of_rounding,
    )

    version, specs = model.session.version, model.manifest.inputs
    opened = bool(model.manifest.fold.get("open_activations"))
    halt()
    unfolded = load_unfolded(version)
    halt()
    exact = fold_graph(unfolded, open_activations=opened, exact=True)
    found: dict[str, Any] = {"located": None}
    if "algebra" in asked.parts:
        halt()
        algebra = check_algebra(find_truth(unfolded, specs, asked.seed, asked.given), exact.model)
        found["algebra"] = algebra.to_dict()
        if not algebra:
            halt()
            located = of_algebra(unfolded, draw_inputs(specs, 2, asked.seed), open_activations=opened)
            found["located"] = located.to_dict()
    unrounded = as_stored(exact.model, model.manifest)
    if "search" in asked.parts:
        from fold.proof import search_inputs  # noqa: PLC0415  # needs torch

        halt()
        sought = search_inputs(
            unrounded,
            read_graph(version.model_file).model,
            specs,
            starts=inputs,
            budget_seconds=asked.search_seconds,
            seed=asked.seed,
            progress=lambda *_: halt(),
        )
        found["search"] = sought.to_dict()
    if "rounding" in asked.parts:
        halt()
        rounding = check_rounding(
            unrounded,
            lambda: read_graph(version.model_file).model,
            first_rows(inputs, BOUNDED_ROWS) if all_batched(specs) else inputs,
        )
        found["rounding"] = rounding.to_dict()
        if rounding.faults and found["located"] is None:
            found["located"] = of_rounding(rounding.faults, exact.report).to_dict()
    return found


def _halting(run: "Run", halt: Halt) -> "Run":
    def step(inputs: Arrays) -> Arrays:
        halt()
        return run(inputs)

    return step


class _Halting:
    def __init__(self, reference: "Reference", halt: Halt) -> None:
        self._exact, self._unfolded = _halting(reference.exact, halt), _halting(reference.unfolded, halt)

    def exact(self, inputs: Arrays) -> Arrays:
        return self._exact(inputs)

    def unfolded(self, inputs: Arrays) -> Arrays:
        return self._unfolded(inputs)
