"""The certifier: proves that a folded graph, as it is served here, still is the model that was trained.

Four parts must hold: A, the algebra, before anything is rounded; B, the rounding of each weight; C, the outputs as
served, compared with float64; D, the decisions. A fifth, E, searches for the input on which the graphs differ most, on
request (docs/certificate.md). Everything is computed from the model directory alone, on any machine.

`prove_graphs` is A, B and E, which compare graphs; the service calls it, too. `certify` adds C and D for a session of
its own. Weights in float64 are large, so each step releases what the next one does not need.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from fold.arrays import Arrays, first_rows, in_chunks
from fold.artifact import ModelVersion, all_batched, sha256
from fold.engine import FoldReport, fold_graph
from fold.evaluate import Evaluator
from fold.graph import read_graph
from fold.inputs import FREE_SIZES, check_inputs, drawn_inputs
from fold.precision import FORMATS, as_stored, refuse_tf32
from fold.proof.algebra import FAMILIES, Algebra, Families, check_algebra, find_answers, find_truth
from fold.proof.certificate import Certificate, GraphParts
from fold.proof.locate import Located, of_algebra, of_nothing, of_reference, of_rounding, of_run_time
from fold.proof.reference import Reference, load_reference
from fold.proof.rounding import Rounding, check_rounding
from fold.proof.run_time import Verdict
from fold.proof.unfolded import Reduced, load_unfolded, run_unfolded
from fold.proof.verify import compare, disagreement
from fold.runtime import (
    CudaOptions,
    Provider,
    open_graph,
    open_session,
    provider_of,
    release_memory,
    run,
    this_machine,
    tool_versions,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from fold.proof.search import SearchResult

GRAPH_PARTS = ("algebra", "rounding", "search")
"""A, B and E."""
ROWS = 4
"""Rows that are computed at a time."""
Announce = Callable[[str], None]
Progress = Callable[[int, int, float], None]
OnPart = Callable[[str, "Algebra | Rounding | SearchResult"], None]


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
    progress: Progress = lambda step, steps, found: None,
) -> Certificate:
    """Certify a model directory: compare its graph, as this machine would serve it, with its own reference.

    On `inputs`, or on `samples` rows drawn from `seed`. With `search_seconds` above 0, part E searches for so long.
    `unfolded` is the unfolded graph, if the caller has it already. `announce` is told each step before it is taken,
    `progress` each step of the search. Raises `BnfoldError` for inputs that do not fit, and for a directory that cannot
    be read.
    """
    manifest, precision = version.manifest, version.manifest.precision
    refuse_tf32(precision, provider, str(version.model_file))

    # 1. The inputs
    rows = drawn_inputs(manifest, samples, seed) if inputs is None else check_inputs(manifest.inputs, inputs)

    # 2. The unfolded graph. For fp32 it is needed in step 3 alone, which then reads and releases it itself.
    source = unfolded
    if source is None and precision != "fp32":
        announce("reading the unfolded graph")
        source = load_unfolded(version)

    # 3. Parts A, B and E: the unfolded, the exact and the stored graph
    graphs = prove_graphs(
        version,
        rows,
        parts=GRAPH_PARTS if search_seconds > 0 else ("algebra", "rounding"),
        given=inputs is not None,
        seed=seed,
        search_seconds=search_seconds,
        unfolded=source,
        announce=announce,
        progress=progress,
    )

    # 4. U for parts C and D, if the graph is served in a reduced precision
    reduced: Reduced | None = None
    if precision != "fp32":
        assert source is not None
        announce(f"opening the unfolded graph in {precision}")
        reduced = run_unfolded(version, provider, source, seed=seed, given=None if inputs is None else rows)
    del source
    release_memory()

    # 5. F: the outputs of the served graph. Its session is closed before the reference is loaded.
    announce("running the served graph")
    at_a_time = ROWS if manifest.batched else 0
    folded, computed_on = _run_served(version, rows, provider, at_a_time)
    release_memory()

    # 6. Parts C and D: F compared with the reference, and the reference with the unfolded graph
    announce("parts C and D: the served graph and the reference")
    reference = load_reference(version, provider=provider, unfolded=unfolded, reduced=reduced)
    verdict = compare(
        reference,
        folded,
        rows,
        seed=seed if inputs is None else None,
        provider=computed_on,
        precision=precision,
        rows=at_a_time,
    )
    verdict = with_witness(verdict, reference, version, graphs)

    # 7. Where the fault is
    located = graphs.located
    if not verdict:
        announce("locating the fault")
        located = _locate(version, graphs, verdict, rows, provider, unfolded)
    return _certificate(version, graphs, verdict, located, drawn=rows if inputs is None else None)


def prove_graphs(
    version: ModelVersion,
    inputs: Arrays,
    *,
    parts: Collection[str],
    given: bool = False,
    seed: int = 0,
    search_seconds: float = 0.0,
    unfolded: "ir.Model | None" = None,
    announce: Announce = lambda step: None,
    progress: Progress = lambda step, steps, found: None,
    on_part: OnPart = lambda name, part: None,
) -> GraphParts:
    """Parts A, B and E of a model directory, those of `parts` (`GRAPH_PARTS`), and where the fault is if A or B fails.

    A draws its own inputs from `seed`, and takes `inputs` as well if they are `given` by a user; B takes those of A, or
    without A the first row of `inputs`; E starts from all. `announce` and `progress` are as for `certify`; `on_part`
    gets the name and the result of each part when it is known. An exception from one of them ends the proof. Raises
    `BnfoldError` for a graph that cannot be evaluated, `ModuleNotFoundError` if a part needs PyTorch and it is not
    installed.
    """
    manifest, specs = version.manifest, version.manifest.required_inputs
    opened = bool(manifest.fold.get("open_activations"))
    source = unfolded  # what the caller has stays in memory; what is read here is released
    folding = None

    # 1. The unfolded graph, and what it computes
    if source is None:
        announce("reading the unfolded graph")
        source = load_unfolded(version)
    if _says_unchanged(version):
        folding = fold_graph(source, open_activations=opened, exact=True)
    unchanged = folding is not None and folding.unchanged  # equal to the letter, which needs little arithmetic
    truth = None
    if "algebra" in parts:
        announce("part A, algebra: the unfolded graph in float64")
        names = ("normal",) if unchanged else FAMILIES
        free = manifest.free_sizes or FREE_SIZES
        truth = find_truth(source, specs, seed, inputs if given else None, free, names)

    # 2. The exact graph
    if folding is None:
        announce("folding the graph again, with exact weights")
        folding = fold_graph(source, open_activations=opened, exact=True)
    del source
    release_memory()

    # 3. Part A
    algebra = witness = rounding = search = None
    answers: Families = {}
    if truth is not None:
        witness = truth.families["normal"]
        announce("part A, algebra: the exact graph in float64")
        answers = truth.families if unchanged else find_answers(Evaluator(folding.model), truth.inputs)
        algebra = check_algebra(truth, answers, partial(_unfolded, version, unfolded))
        on_part("algebra", algebra)
    del truth
    release_memory()

    # 4. Part E
    exact, report = as_stored(folding.model, manifest), folding.report
    del folding
    if "search" in parts:
        announce("part E, search: the input with the largest difference")
        search = _search(version, exact, inputs, search_seconds, seed, progress)
        on_part("search", search)

    # 5. Part B
    if "rounding" in parts:
        announce("part B, rounding: each weight, and its effect")
        few = {"given" if given else "normal": _few(version, inputs)}
        rounding = check_rounding(exact, partial(_read_stored, version), _for_rounding(version, exact, answers, few))
        on_part("rounding", rounding)
    del exact
    release_memory()

    # 6. Where the fault is, if A or B fails
    located = _locate_fold(version, algebra, rounding, answers, report, unfolded, announce)
    return GraphParts(algebra, rounding, search, located, witness)


def _search(
    version: ModelVersion, exact: "ir.Model", starts: Arrays, seconds: float, seed: int, progress: Progress
) -> "SearchResult":
    from fold.proof.search import search_inputs  # noqa: PLC0415  # needs PyTorch

    specs = version.manifest.required_inputs
    stored = _read_stored(version)
    return search_inputs(exact, stored, specs, starts=starts, budget_seconds=seconds, seed=seed, progress=progress)


def _for_rounding(version: ModelVersion, exact: "ir.Model", answers: Families, few: dict[str, Arrays]) -> Families:
    """What part B compares: A's `answers` of the exact graph, or what that graph computes from `few` inputs."""
    if answers and version.manifest.precision not in FORMATS:  # where constants that are no weights change their type
        return answers
    return find_answers(Evaluator(exact), {name: asked for name, (asked, _) in answers.items()} or few)


def _locate_fold(
    version: ModelVersion,
    algebra: Algebra | None,
    rounding: Rounding | None,
    answers: Families,
    report: FoldReport,
    unfolded: "ir.Model | None",
    announce: Announce,
) -> Located | None:
    """The fold that is wrong if A or B fails; None if both hold, or if A shows nothing. `answers` has A's inputs."""
    if algebra is not None and algebra.compared and not all(algebra.families):
        announce("locating the wrong fold")
        opened = bool(version.manifest.fold.get("open_activations"))
        inputs, _ = answers[algebra.worst.name]
        return of_algebra(_unfolded(version, unfolded), inputs, algebra.worst.limit, open_activations=opened)
    if rounding is not None and rounding.faults:
        return of_rounding(rounding.faults, report)
    return None


def _unfolded(version: ModelVersion, known: "ir.Model | None") -> "ir.Model":
    return load_unfolded(version) if known is None else known


def _says_unchanged(version: ModelVersion) -> bool:
    """Whether the manifest says that nothing was folded and nothing was stored in another type."""
    told = version.manifest.fold
    counts = [told.get("batchnorms"), told.get("branches_merged"), told.get("normalization")]
    affines = told.get("affines") or []
    return (
        version.manifest.precision in ("fp32", "tf32")
        and not any(counts)
        and not any(one.get("folded") for one in affines)
    )


def with_witness(verdict: Verdict, reference: Reference, version: ModelVersion, graphs: GraphParts) -> Verdict:
    """The verdict, in doubt if the exported graph differs from a PyTorch reference by more than rounding explains, both
    in float64. Part A computed the outputs of that graph."""
    if version.manifest.reference != "reference.pt2" or graphs.witness is None:
        return verdict
    return replace(verdict, disagreement=disagreement(reference, *graphs.witness))


def _run_served(version: ModelVersion, inputs: Arrays, provider: Provider, at_a_time: int) -> tuple[Arrays, str]:
    """What the graph answers as it is served, and the provider that computed it."""
    cuda = CudaOptions(tf32=version.manifest.tf32)
    session = open_session(version.model_file, provider=provider, cuda=cuda)
    return in_chunks(partial(run, session), inputs, at_a_time), provider_of(session)


def _few(version: ModelVersion, inputs: Arrays) -> Arrays:
    return first_rows(inputs, 1) if all_batched(version.manifest.inputs) else inputs


def _read_stored(version: ModelVersion) -> "ir.Model":
    return read_graph(version.model_file).model


def _locate_run_time(version: ModelVersion, inputs: Arrays, provider: Provider) -> Located:
    cuda = CudaOptions(tf32=version.manifest.tf32)
    return of_run_time(
        _read_stored(version),
        _few(version, inputs),
        lambda model, arrays: run(open_graph(model, provider=provider, cuda=cuda), arrays),
        lambda model, arrays: run(open_graph(model, provider="cpu", optimised=False), arrays),
        version.manifest.precision,
    )


def _locate(
    version: ModelVersion,
    graphs: GraphParts,
    verdict: Verdict,
    inputs: Arrays,
    provider: Provider,
    unfolded: "ir.Model | None",
) -> Located | None:
    """The first node where the reference is in doubt or writes no finite number, or that the provider computes wrongly
    if only C or D fails."""
    if verdict.doubt is None and verdict.empty is None:
        return graphs.located or _locate_run_time(version, inputs, provider)
    if verdict.doubt is not None:
        return locate_doubt(version, inputs, unfolded)
    return of_nothing(_unfolded(version, unfolded), inputs)


def locate_doubt(version: ModelVersion, inputs: Arrays, unfolded: "ir.Model | None" = None) -> Located:
    """The first node where the reference in float64 and ONNX Runtime part, if a verdict on `inputs` is in doubt.

    `unfolded` is the unfolded graph, if the caller has it already.
    """
    source = _unfolded(version, unfolded)
    rows = first_rows(inputs, ROWS) if version.manifest.batched else inputs
    return of_reference(
        source, rows, lambda model, arrays: run(open_graph(model, provider="cpu", optimised=False), arrays)
    )


def _certificate(
    version: ModelVersion,
    graphs: GraphParts,
    verdict: Verdict,
    located: Located | None,
    *,
    drawn: Arrays | None,
) -> Certificate:
    assert graphs.algebra is not None
    assert graphs.rounding is not None
    machine = this_machine(gpu=verdict.provider == "cuda")
    subject = {
        "source": str(version.manifest.source.get("sha256", "")),
        "reference": sha256(version.reference_file),
        "graph": sha256(version.model_file),
    }
    return Certificate(
        graphs.algebra,
        graphs.rounding,
        verdict,
        graphs.search,
        located,
        None if drawn is None else {name: array.shape for name, array in drawn.items()},
        subject,
        machine.gpu or machine.cpu,
        tool_versions(),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
