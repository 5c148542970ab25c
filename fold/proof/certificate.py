"""The certificate: that a folded graph, as it is served here, still is the model that was trained.

Four parts must hold: A, the algebra, before anything is rounded; B, the rounding of each weight; C, the run time, held
against float64; D, the decisions. A fifth, the search for the input on which the graphs differ most, is made on request
(docs/certificate.md). Everything is computed from the model directory alone, on any machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from fold.arrays import Arrays, first_rows, in_chunks
from fold.artifact import ModelVersion, all_batched, sha256
from fold.engine import fold_graph
from fold.graph import read_graph
from fold.inputs import check_inputs, draw_inputs
from fold.precision import as_stored, refuse_tf32
from fold.proof.algebra import Algebra, check_algebra, find_truth
from fold.proof.locate import Located, of_algebra, of_rounding, of_run_time
from fold.proof.reduced import run_unfolded
from fold.proof.reference import load_reference
from fold.proof.rounding import Rounding, check_rounding
from fold.proof.run_time import Verdict
from fold.proof.unfolded import load_unfolded
from fold.proof.verify import compare
from fold.runtime import (
    CudaOptions,
    Provider,
    open_graph,
    open_session,
    provider_of,
    release_large_blocks,
    release_memory,
    run,
    this_machine,
    tool_versions,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from fold.proof.search import Found

ROWS = 4
"""Rows that are computed at a time."""
BOUNDED_ROWS = 1
"""Rows of the inputs on which the bound is computed, which takes the longest and the most memory."""

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Certificate:
    """True if every part holds. `located` tells where the fault lies if one does not.

    `subject` has the SHA-256 of the source, the reference and the served graph.
    """

    algebra: Algebra
    rounding: Rounding
    verdict: Verdict
    search: "Found | None"
    located: Located | None
    subject: dict[str, str]
    device: str
    versions: dict[str, str]
    created: str

    def __bool__(self) -> bool:
        return bool(self.algebra) and bool(self.rounding) and bool(self.verdict)

    @property
    def message(self) -> str:
        """All of it in one sentence."""
        if not self.algebra:
            worst = self.algebra.worst
            what = f"in float64 the graphs differ by {worst.difference:.3g} of output {worst.output!r} ({worst.name})"
        elif not self.rounding:
            wrong = len(self.rounding.faults)
            what = f"{wrong} weights or nodes are not what folding gives" if wrong else "rounding exceeds its bound"
        else:
            return f"{self.verdict.message}{self._where}"
        precision = self.verdict.precision
        return f"NOT equivalent{'' if precision == 'fp32' else f' in {precision}'}: {what}{self._where}"

    @property
    def _where(self) -> str:
        return f"; {self.located.message}" if self.located else ""

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON (docs/certificate.schema.json)."""
        content = {
            **self.verdict.to_dict(),
            "equivalent": bool(self),
            "message": self.message,
            "runtime_holds": bool(self.verdict),
            "algebra": self.algebra.to_dict(),
            "rounding": self.rounding.to_dict(),
            "search": None if self.search is None else self.search.to_dict(),
            "located": None if self.located is None else self.located.to_dict(),
            "subject": self.subject,
            "device": self.device,
            "versions": self.versions,
            "created": self.created,
        }
        return {key: _without_infinities(value) for key, value in content.items()}


def certify(
    version: ModelVersion,
    inputs: Arrays | None = None,
    *,
    samples: int = 16,
    seed: int = 0,
    provider: Provider = "auto",
    search_seconds: float = 0.0,
    unfolded: "ir.Model | None" = None,
    announce: Announce = lambda step: None,
    progress: Callable[[int, int, float], None] = lambda step, steps, found: None,
) -> Certificate:
    """Certify a model directory: its graph as this machine would serve it, against its own reference.

    On `inputs`, or `samples` rows drawn from `seed`. `unfolded` saves making that graph again where it is at hand.
    Raises `BnfoldError` for inputs that do not fit, and for a directory that cannot be read.
    """
    release_large_blocks()
    specs, opened = version.manifest.inputs, bool(version.manifest.fold.get("open_activations"))
    given = draw_inputs(specs, samples, seed) if inputs is None else check_inputs(specs, inputs)
    user, precision = None if inputs is None else given, version.manifest.precision
    refuse_tf32(precision, provider, str(version.model_file))
    announce("making the unfolded graph again")
    unfolded = load_unfolded(version) if unfolded is None else unfolded
    announce("algebra: both graphs in float64")
    truth = find_truth(unfolded, specs, seed, user)
    folding = fold_graph(unfolded, open_activations=opened, exact=True)
    if precision == "fp32":
        unfolded = None  # every part lets go of what the next one does not need: weights in float64 are large
        release_memory()
    algebra = check_algebra(truth, folding.model)
    release_memory()
    exact = as_stored(folding.model, version.manifest)
    found = None
    if search_seconds > 0:
        from fold.proof.search import search_inputs  # noqa: PLC0415  # needs PyTorch

        announce("searching for the largest difference")
        found = search_inputs(
            exact,
            _read_served(version),
            specs,
            starts=given,
            budget_seconds=search_seconds,
            seed=seed,
            progress=progress,
        )
    announce("rounding: every weight, and what it does")
    few = first_rows(given, BOUNDED_ROWS) if all_batched(specs) else given
    rounding = check_rounding(exact, partial(_read_served, version), few)
    located: Located | None = None
    if not algebra:
        announce("looking for the guilty fold")
        source = load_unfolded(version) if unfolded is None else unfolded
        located = of_algebra(source, draw_inputs(specs, 2, seed), open_activations=opened)
    elif not rounding and rounding.faults:
        located = of_rounding(rounding.faults, folding.report)
    run_in_precision = None
    if precision != "fp32":
        announce(f"the unfolded graph in {precision}")
        run_in_precision = run_unfolded(version, provider, unfolded=unfolded, seed=seed, given=user)
    del unfolded, folding, exact
    release_memory()
    announce("run time: the served graph against float64")
    rows = ROWS if version.manifest.batched else 0
    session = open_session(version.model_file, provider=provider, cuda=CudaOptions(tf32=precision == "tf32"))
    computed_on = provider_of(session)
    folded = in_chunks(partial(run, session), given, rows)
    del session
    release_memory()
    verdict = compare(
        load_reference(version, provider=provider, unfolded=run_in_precision),
        folded,
        given,
        seed=seed if inputs is None else None,
        provider=computed_on,
        precision=precision,
        rows=rows,
    )
    if located is None and not verdict:
        announce("looking for the guilty layer")
        located = of_run_time(_read_served(version), few, _served(provider, precision), _plain, precision)
    machine = this_machine(gpu=computed_on == "cuda")
    return Certificate(
        algebra,
        rounding,
        verdict,
        found,
        located,
        _subject(version),
        machine.gpu or machine.cpu,
        tool_versions(),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _without_infinities(content: Any) -> Any:
    """JSON has no infinity and no NaN; null stands for what is no number."""
    if isinstance(content, dict):
        return {key: _without_infinities(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_infinities(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _subject(version: ModelVersion) -> dict[str, str]:
    return {
        "source": str(version.manifest.source.get("sha256", "")),
        "reference": sha256(version.reference_file),
        "graph": sha256(version.model_file),
    }


def _read_served(version: ModelVersion) -> "ir.Model":
    return read_graph(version.model_file).model


def _served(provider: Provider, precision: str) -> Callable[["ir.Model", Arrays], Arrays]:
    cuda = CudaOptions(tf32=precision == "tf32")
    return lambda model, arrays: run(open_graph(model, provider=provider, cuda=cuda), arrays)


def _plain(model: "ir.Model", arrays: Arrays) -> Arrays:
    return run(open_graph(model, provider="cpu", optimised=False), arrays)
