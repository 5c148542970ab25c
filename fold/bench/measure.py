"""Latency of the unfolded and the folded graph of a published model, side by side in ONNX Runtime.

Both graphs run in sessions of `fold.runtime` with all of ONNX Runtime's own optimisations, so the unfolded graph gets
the fusions that a user has without folding. Runs of both alternate and medians are compared, so that other load of the
machine affects both alike. Before anything is timed, the outputs of both are compared with the float64 reference, as in
a proof (`fold.proof`).

PyTorch is imported only where the reference is a `.pt2`.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from fold.arrays import Arrays, join_rows
from fold.artifact import Manifest, ModelVersion
from fold.bench.benchmark import Benchmark, GraphSize, Measurement, Timing
from fold.errors import BnfoldError, first_line
from fold.graph import save_graph
from fold.inputs import drawn_inputs
from fold.proof import Reference, compare, load_reference, load_unfolded
from fold.runtime import (
    CudaOptions,
    Provider,
    device_number,
    open_session,
    optimised_operators,
    provider_of,
    resolve_provider,
    run,
    this_machine,
    tool_versions,
)

if TYPE_CHECKING:
    import onnxruntime as ort

BATCHES = (1, 8, 32)
WARMUP_ROUNDS = 3
CHECKED_ROWS = 16
"""The fewest rows on which outputs are compared: on a single row rounding may be small by chance."""


class AnswersDifferError(Exception):
    """The unfolded or the folded graph does not compute what the reference does, so no times are reported."""


@dataclass(frozen=True)
class _Answers:
    """The reference's outputs for some inputs, computed once for all providers."""

    R: Arrays
    U: Arrays
    noisy: Callable[[Arrays, int, float | None], Arrays]
    mixed: bool

    def exact(self, inputs: Arrays) -> Arrays:
        return self.R

    def unfolded(self, inputs: Arrays) -> Arrays:
        return self.U


def bench_version(
    version: ModelVersion,
    *,
    batches: Sequence[int] | None = None,
    rounds: int = 50,
    provider: Provider = "auto",
    threads: int = 0,
    seed: int = 0,
    announce: Callable[[str], None] = lambda step: None,
) -> Benchmark:
    """Measure a model directory. `provider` `auto` is every provider of this machine; `announce` is called with each
    step.

    `batches` are 1, 8 and 32 by default, or the batch size that the model is fixed to. A run takes and returns arrays
    in main memory, so on a GPU it includes the copies. Raises `AnswersDifferError` if a graph is wrong, before it is
    timed, and `BnfoldError` for bad input.
    """
    # 1. Open both graphs on every provider, and the reference.
    manifest = version.manifest
    batches = choose_batches(manifest, batches, BATCHES)
    providers = _present(provider)
    sizes, sessions = _open_graphs(version, providers, threads, announce)
    announce("opening the reference")
    reference = load_reference(version)
    measurements = []
    for batch in batches:
        # 2. Compute the reference once for each batch size.
        announce(f"batch {batch}: computing the reference")
        inputs = drawn_inputs(manifest, _checked_rows(manifest, batch), seed)
        with _one_line_errors(f"{version.reference_file} at batch {batch}"):
            truth = _Answers(reference.exact(inputs), reference.unfolded(inputs), reference.noisy, reference.mixed)
        timed = next(_in_batches(manifest, inputs, batch))
        for where in providers:
            # 3. Compare the outputs of both graphs with it.
            announce(f"batch {batch} on {where}: comparing answers")
            errors = {
                name: _check(name, session, manifest, truth, inputs, batch) for name, session in sessions[where].items()
            }
            # 4. Time both graphs in turns.
            announce(f"batch {batch} on {where}: timing {rounds} rounds")
            calls = {name: partial(session.run, None, timed) for name, session in sessions[where].items()}
            timings = {
                name: summarise(seconds, batch, errors[name]) for name, seconds in interleaved(calls, rounds).items()
            }
            measurements.append(Measurement(where, batch, timings["unfolded"], timings["folded"]))
    # 5. Put the measurements together, by provider.
    return Benchmark(
        model=manifest.name,
        version=manifest.version,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        rounds=rounds,
        threads=threads,
        seed=seed,
        unfolded=sizes["unfolded"],
        folded=sizes["folded"],
        measurements=tuple(sorted(measurements, key=lambda one: providers.index(one.provider))),
        machine=this_machine(gpu=any(where != "cpu" for where in providers)),
        versions=tool_versions(),
    )


def parse_batches(text: str) -> tuple[int, ...]:
    """`1,8,32` as numbers, each once. Raises `BnfoldError` for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,4}", part) for part in parts):
        raise BnfoldError(f"--batch {text}: expected whole numbers from 1 to 99999, such as 1,8,32")
    return tuple(dict.fromkeys(int(part) for part in parts))


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """The seconds of each call in each of `rounds` rounds, after a few rounds that are not counted.

    Every other round calls in the opposite order, so that no call always follows the same other one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARMUP_ROUNDS + rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            started = clock()
            calls[name]()
            elapsed = clock() - started
            if turn >= WARMUP_ROUNDS:
                seconds[name].append(elapsed)
    return seconds


def summarise(seconds: Sequence[float], batch: int, relative_error: float) -> Timing:
    """Median, quartiles and throughput of runs of `batch` rows each."""
    first, median, third = (float(quartile) for quartile in np.percentile(seconds, [25, 50, 75]))
    return Timing(1000 * median, 1000 * first, 1000 * third, batch / median, relative_error)


def choose_batches(manifest: Manifest, batches: Sequence[int] | None, usual: Sequence[int]) -> Sequence[int]:
    """The batch sizes to measure: `batches` or the `usual` ones, or the one that the model is fixed to.

    Raises `BnfoldError` for other `batches` than that one.
    """
    if any(spec.shape and spec.shape[0] < 0 for spec in manifest.inputs):
        return batches or usual
    fixed = next((spec.shape[0] for spec in manifest.inputs if spec.shape), 1)
    for batch in batches or ():
        if batch != fixed:
            raise BnfoldError(f"batch {batch}: the batch of {manifest.name} is fixed; use --batch {fixed}")
    return (fixed,)


def _present(provider: Provider) -> list[Provider]:
    if provider != "auto":
        device_number(provider)
        return [provider]
    return ["cpu", "cuda"] if resolve_provider("auto") == "cuda" else ["cpu"]


def _open_graphs(
    version: ModelVersion, providers: Sequence[Provider], threads: int, announce: Callable[[str], None]
) -> tuple[dict[str, GraphSize], dict[Provider, dict[str, "ort.InferenceSession"]]]:
    """The size of both graphs, and a session for each of them on each provider."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"unfolded": version.reference_file, "folded": version.model_file}
        if version.manifest.reference == "reference.pt2":
            announce("exporting the unfolded graph")
            files["unfolded"] = Path(folder) / "unfolded.onnx"
            save_graph(load_unfolded(version), files["unfolded"])
        sizes = {}
        for name, file in files.items():
            graph = ir.load(file)
            common.InlinePass()(graph)  # BatchNorms inside functions count too
            kinds = [node.op_type for node in graph.graph.all_nodes() if node.op_type != "Constant"]
            origin = version.model_file if name == "folded" else version.reference_file
            precision = version.manifest.precision if name == "folded" else "fp32"
            left = optimised_operators(file)
            sizes[name] = GraphSize(
                origin.name,
                kinds.count("BatchNormalization"),
                len(kinds),
                precision,
                None if left is None else left.count("BatchNormalization"),
                None if left is None else len(left),
            )
        announce("opening both graphs in ONNX Runtime")
        sessions = {
            where: {
                name: open_session(file, provider=where, threads=threads, cuda=_options(version.manifest, name))
                for name, file in files.items()
            }
            for where in providers
        }
    return sizes, sessions


def _options(manifest: Manifest, name: str) -> CudaOptions:
    return CudaOptions(tf32=name == "folded" and manifest.tf32)


def _checked_rows(manifest: Manifest, batch: int) -> int:
    """The multiple of `batch` that reaches `CHECKED_ROWS`, or `batch` where outputs are not split by rows."""
    return -(-CHECKED_ROWS // batch) * batch if manifest.batched else batch


def _in_batches(manifest: Manifest, inputs: Arrays, batch: int) -> Iterator[Arrays]:
    """The drawn inputs, `batch` rows at a time."""
    if not manifest.batched:
        yield inputs
        return
    for start in range(0, _checked_rows(manifest, batch), batch):
        yield {name: np.ascontiguousarray(array[start : start + batch]) for name, array in inputs.items()}


def _check(
    name: str, session: "ort.InferenceSession", manifest: Manifest, truth: Reference, inputs: Arrays, batch: int
) -> float:
    """Compare a session's outputs, run as it will be timed, with the reference. The relative error of the worst one."""
    where = f"the {name} graph at batch {batch} on {provider_of(session)}"
    with _one_line_errors(where):
        answers = join_rows([run(session, rows) for rows in _in_batches(manifest, inputs, batch)])
    precision = manifest.precision_on(provider_of(session)) if name == "folded" else "fp32"
    verdict = compare(truth, answers, inputs, provider=provider_of(session), precision=precision)
    if not verdict:
        raise AnswersDifferError(f"{where}: {verdict.message}; no times are reported")
    return max((output.relative_error for output in verdict.outputs), default=0.0)


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Turns any error of PyTorch, onnx or ONNX Runtime into a `BnfoldError` of one line that names what was
    computed."""
    try:
        yield
    except Exception as error:  # they share no base
        raise BnfoldError(f"{what}: {first_line(error)}") from error
