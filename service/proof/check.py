"""One equivalence check: parts C and D of the certificate for the session that serves; A, B and E on request.

Everything here runs on a thread beside the batches. `halt` is called before each step and each batch of rows; it raises
when nobody waits for the answer any more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fold.arrays import Arrays
from service.proof.references import Halt

if TYPE_CHECKING:
    from fold.arrays import Run
    from fold.inspection import Inspection
    from fold.proof import Reference
    from service.repository import Model

PARTS = ("algebra", "rounding", "search")
"""`fold.proof.GRAPH_PARTS`, without an import of the proof."""
DEFAULT_SAMPLES = 16
DEFAULT_SEARCH_SECONDS = 5.0

Tell = Callable[[str, dict[str, Any]], None]
"""Called with the name of an event and its data: `step`, `search` or `part`."""


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What a client asks for: tensors to check on, or the number of rows to draw and their seed; and the parts beside
    C and D."""

    given: Arrays | None = field(default=None, repr=False)
    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    parts: tuple[str, ...] = ()
    search_seconds: float = DEFAULT_SEARCH_SECONDS


def prove(
    model: "Model", asked: CheckRequest, max_rows: int, tell: Tell, reference: "Reference", halt: Halt
) -> dict[str, Any]:
    """The JSON of the answer. At most `max_rows` rows are computed at a time, as they are served. `tell` gets each step
    before it is taken, and each part when it is known.

    Raises `BnfoldError` for a model that cannot be proven, `ModuleNotFoundError` if a part needs PyTorch and it is not
    installed.
    """
    from fold.inputs import drawn_inputs  # noqa: PLC0415  # only a check pays for these imports
    from fold.proof import GraphParts, compare, locate_doubt, prove_graphs, with_witness  # noqa: PLC0415

    def announce(step: str) -> None:
        halt()
        tell("step", {"text": step})

    def progress(step: int, steps: int, found: float) -> None:
        halt()
        tell("search", {"step": step, "steps": steps, "found": found})

    # 1. The inputs
    if asked.given is None:
        inputs = drawn_inputs(model.manifest, asked.samples, asked.seed)
    else:
        inputs = {name: np.array(array) for name, array in asked.given.items()}  # views of a body may be unaligned

    # 2. Parts C and D, for the session that serves
    tell("step", {"text": "parts C and D: the served graph and the reference"})
    verdict = compare(
        _HaltingReference(reference, halt),
        _halting(model.session.run_in_all, halt),
        inputs,
        seed=asked.seed if asked.given is None else None,
        provider=model.session.provider,
        precision=model.manifest.precision_on(model.session.provider),
        rows=max_rows if model.signature.batched else 0,
    )

    if asked.parts:  # else it is the answer
        tell("part", verdict.to_dict())

    # 3. Parts A, B and E, for the graphs of its model directory
    version, graphs = model.session.version, GraphParts(None, None, None, None)
    if asked.parts:
        graphs = prove_graphs(
            version,
            inputs,
            parts=asked.parts,
            given=asked.given is not None,
            seed=asked.seed,
            search_seconds=asked.search_seconds,
            announce=announce,
            progress=progress,
            on_part=lambda name, part: tell("part", {name: part.to_dict()}),
        )
        verdict = with_witness(verdict, reference, version, graphs)

    # 4. Where the reference goes wrong, if it is in doubt
    if verdict.doubt is not None:
        halt()
        graphs = replace(graphs, located=locate_doubt(version, inputs))
    return {
        "model_name": model.name,
        "model_version": model.version,
        **verdict.to_dict(),
        "equivalent": bool(verdict) and bool(graphs),
        "message": graphs.message(verdict),
        **graphs.to_dict(),
    }


def inspect_batchnorms(model: "Model", reference: "Reference", halt: Halt) -> "Inspection":
    """What `bnfold inspect` says of the unfolded graph of a model. Raises as `prove` does."""
    from fold.inspection import inspect_graph  # noqa: PLC0415  # as above
    from fold.proof import load_unfolded  # noqa: PLC0415

    halt()
    unfolded = load_unfolded(model.session.version)
    halt()
    opened = bool(model.manifest.fold.get("open_activations"))
    return inspect_graph(unfolded, open_activations=opened)


def measure_layers(model: "Model", reference: "Reference", halt: Halt) -> dict[str, Any]:
    """The errors of the layers of both graphs of a model directory, on rows that are drawn. Raises as `prove` does."""
    from fold.engine import fold_graph  # noqa: PLC0415  # as above
    from fold.graph import read_graph  # noqa: PLC0415
    from fold.inputs import drawn_inputs  # noqa: PLC0415
    from fold.inspection import OBSERVED_ROWS, layer_errors  # noqa: PLC0415
    from fold.proof import load_unfolded  # noqa: PLC0415

    version, manifest = model.session.version, model.manifest
    halt()
    unfolded = load_unfolded(version)
    halt()
    carried = fold_graph(unfolded, open_activations=bool(manifest.fold.get("open_activations"))).carried
    halt()
    stored = read_graph(version.model_file).model
    inputs = drawn_inputs(manifest, OBSERVED_ROWS, 0)
    return layer_errors(unfolded, stored, carried, inputs, halt).to_dict()


def _halting(run: "Run", halt: Halt) -> "Run":
    def step(inputs: Arrays) -> Arrays:
        halt()
        return run(inputs)

    return step


class _HaltingReference:
    """A reference that may be stopped before each batch of rows."""

    def __init__(self, reference: "Reference", halt: Halt) -> None:
        self.exact, self.unfolded = _halting(reference.exact, halt), _halting(reference.unfolded, halt)
        self.noisy, self.mixed = reference.noisy, reference.mixed
