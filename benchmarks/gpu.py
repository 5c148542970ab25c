"""Measures a GPU: folded graphs beside the unfolded one and PyTorch, and the service beside its own session.

    python -m benchmarks.gpu [--seconds 200] [--only resnet50 …] [--batches 1,8,64,256] [--device cuda] [--dry-run]

1. Equivalence: part C of the certificate (docs/certificate.md) for each network in float32, TF32 and float16.
2. Latency: the unfolded graph and the folded one (closed, and with activations opened) in ONNX Runtime, through the
   buffers of the service, and closed in float16, also with the channels last; PyTorch eager in float32 with TF32 off,
   and in float16 with the channels last. All times are host to host (benchmarks/contestants.py). Answers are first
   compared with PyTorch's in float32. Contestants take turns, every other round in the opposite order, and medians are
   compared.
3. Serving: `bnfold serve` as a process, loaded by several others (benchmarks/clients.py), compared with R*, the best
   rate of the session alone over batch sizes and one or two threads, before and after.
4. One network in compiled PyTorch, in float16 and in float32, and then with the options that the service offers.

The first three share half of `--seconds`, the fourth takes what is left. Each result is a line at once, and what there
is of them is written after each network; at the end, or on SIGTERM, tables follow. The exit code is 1 if an answer was
wrong. `--dry-run` takes the same steps on the CPU, with little work.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import Answer, halved, in_onnxruntime, in_torch, relative_error
from benchmarks.graphs import GRAPHS, build, file_of, network
from benchmarks.published import FIRST, NETWORKS
from benchmarks.service_on_gpu import Serving, serve
from fold.bench.measure import interleaved, parse_batches
from fold.errors import first_line
from fold.proof.run_time import judge
from fold.runtime import CudaOptions, loaded_cudnn, this_machine, tool_versions

OPTIONS_OF = "resnet50"
"""The network on which options and `torch.compile` are tried."""
OPTIONS = {
    "closed, CUDA graphs": ("closed", CudaOptions(graphs=True)),
    "closed, NHWC": ("closed", CudaOptions(nhwc=True)),
    "closed tf32": ("closed", CudaOptions(tf32=True)),
    "closed tf32, NHWC": ("closed", CudaOptions(tf32=True, nhwc=True)),
    "closed fp16, NHWC, CUDA graphs": ("closed fp16", CudaOptions(graphs=True, tf32=True, nhwc=True)),
}
COMPILED_ROWS, COMPILE_SECONDS, COMPILED_SECONDS = 64, 20, 2.0
"""`torch.compile` begins with this batch size. No compilation begins with less time left; then it is measured."""
FIRST_SHARE, LATENCY_SHARE, SERVED_SHARE, COMPILED_SHARE = 0.5, 0.7, 0.6, 0.7
"""Shares of the time that is left when each part begins."""
WRONG = 2e-4
"""Relative to the largest number. Rounding of float32 is ten times smaller; a wrong fold is larger."""
REDUCED_WRONG = 0.1
ROUNDS = (5, 100)
PROVEN = {
    "fp32": ("PyTorch", "closed"),
    "tf32": ("unfolded tf32", "closed tf32"),
    "fp16": ("PyTorch fp16", "closed fp16"),
}
"""The unfolded model and the folded graph that are compared in each precision."""
PROVEN_ROWS = 4


@dataclass
class Results:
    """Results so far. `told` lists what could not be measured, `wrong` the wrong answers."""

    device: str
    machine: dict[str, Any]
    versions: dict[str, str]
    cudnn: str | None = None
    equivalence: list[dict[str, Any]] = field(default_factory=list)
    latency: list[dict[str, Any]] = field(default_factory=list)
    serving: Serving | None = None
    told: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Clock:
    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._until - time.monotonic())


class Stopped(BaseException):
    """SIGTERM arrived. This is no `Exception`, so that no handler of errors catches it."""


def stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


class Makers:
    """Processes that make graphs, at most half as many at a time as there are cores. Processes that still run when the
    block ends are ended."""

    def __init__(self, arguments: dict[str, list[str]]) -> None:
        cores = os.cpu_count() or 1
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // len(arguments)))}
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False
        self._pool = ThreadPoolExecutor(max(1, cores // 2))
        self._made = {name: self._pool.submit(self._make, given) for name, given in arguments.items()}

    def __enter__(self) -> "Makers":
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        for process in list(self._running):
            process.kill()
        self._pool.shutdown(cancel_futures=True)

    def ready(self, name: str, seconds: float, results: Results) -> bool:
        """Wait for at most this long; missing graphs are reported."""
        try:
            self._made[name].result(timeout=seconds)
        except (RuntimeError, TimeoutError) as error:
            results.told.append(f"{name}: not made: {first_line(error) or 'no time was left'}")
            return False
        return True

    def _make(self, arguments: list[str]) -> None:
        """Raises `RuntimeError` with the last line that the process wrote."""
        command = [sys.executable, "-m", "benchmarks.graphs", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self._environment) as process:
            self._running.add(process)
            if self._ended:
                process.kill()
            said = process.communicate()[1]
        if process.returncode:
            raise RuntimeError((said.strip().splitlines() or ["no word"])[-1])


@contextmanager
def telling(what: str, results: Results) -> Iterator[None]:
    """Any error of the device, the driver or the compiler, and a service that does not start, is reported, and ends
    this block alone."""
    try:
        yield
    except (Exception, SystemExit) as error:
        results.told.append(f"{what}: {first_line(error)}")


def contestants(name: str, folder: Path, device: str, batches: tuple[int, ...], results: Results) -> dict[str, Answer]:
    """Contestants by name; those that cannot be opened are reported. The first is PyTorch in float32, with which the
    others are compared."""
    module = build(name).to(device)
    found = {"PyTorch": in_torch(module, device)}

    for of in GRAPHS:  # without TF32 no type has tensor cores
        with telling(f"{name}, {of}", results):
            found[of] = in_onnxruntime(file_of(folder, of), device, batches, cuda=CudaOptions(tf32="fp16" in of))
    with telling(f"{name}, closed fp16, NHWC", results):
        cuda = CudaOptions(tf32=True, nhwc=True)
        found["closed fp16, NHWC"] = in_onnxruntime(file_of(folder, "closed fp16"), device, batches, cuda=cuda)
    with telling(f"{name}, PyTorch fp16", results):
        found["PyTorch fp16"] = in_torch(halved(build(name).to(device)), device, half=True)
    return found


def reduced(contestant: str) -> bool:
    return "16" in contestant or "tf32" in contestant


def prove(name: str, folder: Path, found: dict[str, Answer], results: Results) -> None:
    """Part C of the certificate in each precision, a line for each."""
    device = results.device
    x = np.random.default_rng(7).standard_normal((PROVEN_ROWS, *network(name).shape), np.float32)
    with torch.inference_mode():
        exact = build(name).to(device).double()(torch.from_numpy(x).to(device).double()).cpu().numpy()
    compared = dict(found)
    for of in ("unfolded", "closed"):
        compared[f"{of} tf32"] = in_onnxruntime(
            file_of(folder, of), device, (PROVEN_ROWS,), cuda=CudaOptions(tf32=True)
        )
    for precision, (unfolded, folded) in PROVEN.items():
        if unfolded not in compared or folded not in compared:
            continue
        verdict = judge("y", exact, compared[unfolded](x), compared[folded](x), precision)
        results.equivalence.append({"network": name, "precision": precision, "equivalent": verdict.equivalent})
        text = f"{name} in {precision}: error {verdict.folded_error:.2g}, unfolded {verdict.unfolded_error:.2g}"
        say(f"{text}, limit {verdict.limit:.2g}: {'equivalent' if verdict.equivalent else 'NOT equivalent'}")
        if not verdict.equivalent:
            results.wrong.append(f"{text}, limit {verdict.limit:.2g}")


def say(line: str) -> None:
    print(line, flush=True)


def check(name: str, batch: int, found: dict[str, Answer], x: np.ndarray, results: Results) -> dict[str, float]:
    """Errors of the right answers, relative to the largest number. The others are reported and not measured."""
    truth = found["PyTorch"](x)
    errors = {}
    for contestant, answer in found.items():
        try:
            error = relative_error(answer(x), truth)
        except Exception as failure:  # out of memory, or a missing kernel
            results.told.append(f"{name} at {batch}, {contestant}: {first_line(failure)}")
            continue
        if error <= (REDUCED_WRONG if reduced(contestant) else WRONG):
            errors[contestant] = error
            continue
        said = f"{name} at {batch}, {contestant}: {error:.2g} of the largest number from PyTorch in float32"
        # float16 may overflow on random weights. This is no error, but its time would mean nothing.
        (results.told if reduced(contestant) else results.wrong).append(said)
    return errors


def rounds_within(seconds: float, once: float) -> int:
    """How many rounds of `once` seconds fit, within limits."""
    least, most = ROUNDS
    return min(max(int(seconds / once), least), most)


def measure(name: str, batch: int, found: dict[str, Answer], seconds: float, results: Results) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, *network(name).shape), np.float32)
    errors = check(name, batch, found, x, results)
    calls = {contestant: partial(found[contestant], x) for contestant in errors}
    began = time.perf_counter()
    for call in calls.values():
        call()
    rounds = rounds_within(seconds, time.perf_counter() - began)
    taken = interleaved(calls, rounds)
    quartiles = {contestant: 1000 * np.percentile(times, [25, 50, 75]) for contestant, times in taken.items()}
    results.latency.append(
        {
            "network": name,
            "batch": batch,
            "rounds": rounds,
            "errors": errors,
            "quartiles_ms": {contestant: list(map(float, found)) for contestant, found in quartiles.items()},
            "median_ms": {contestant: float(found[1]) for contestant, found in quartiles.items()},
        }
    )
    medians = ", ".join(f"{contestant} {took:.2f}" for contestant, took in results.latency[-1]["median_ms"].items())
    say(f"{name}, {batch} rows, ms: {medians}")


def latency(name: str, found: dict[str, Answer], batches: tuple[int, ...], clock: Clock, results: Results) -> None:
    for done, batch in enumerate(batches):
        measure(name, batch, found, 0.8 * clock.left / (len(batches) - done), results)


def compiled(name: str, batches: tuple[int, ...], found: dict[str, Answer], clock: Clock, results: Results) -> None:
    """`torch.compile` beside the closed graphs. Each batch size is compiled by itself, in float16 first."""
    device, first = results.device, min(COMPILED_ROWS, max(batches))
    kept = {key: found[key] for key in ("PyTorch", "closed", "closed fp16, NHWC") if key in found}
    for batch in sorted(batches, key=lambda batch: (batch != first, batch)):
        for contestant, half in (("torch.compile fp16", True), ("torch.compile", False)):
            if clock.left < COMPILE_SECONDS:
                results.told.append(f"{name} at {batch}, {contestant}: no time was left")
                continue
            torch.compiler.reset()
            with telling(f"{name} at {batch}, {contestant}", results):
                module = halved(build(name).to(device)) if half else build(name).to(device)
                answer = in_torch(torch.compile(module, dynamic=False), device, half=half)
                measure(name, batch, {**kept, contestant: answer}, COMPILED_SECONDS, results)


def with_options(
    name: str, folder: Path, batches: tuple[int, ...], found: dict[str, Answer], clock: Clock, results: Results
) -> None:
    """The closed graph with the options of the service."""
    chosen = {key: found[key] for key in ("PyTorch", "closed") if key in found}
    for option, (of, cuda) in OPTIONS.items():
        with telling(f"{name}, {option}", results):
            chosen[option] = in_onnxruntime(file_of(folder, of), results.device, batches, cuda=cuda)
    latency(name, chosen, batches, clock, results)


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """The time of each other contestant over that of the closed graph: above 1 the closed graph is faster."""
    medians = row["median_ms"]
    base = medians.get("closed")
    return {} if base is None else {name: took / base for name, took in medians.items() if name != "closed"}


def tell(results: Results, console: Console) -> None:
    names = list(dict.fromkeys(name for row in results.latency for name in ratios(row)))
    for first in range(0, len(names), 6):
        table = Table("network", "rows", "closed ms", *names[first : first + 6])
        table.title = "time of each over the time of the folded graph (closed), host to host"
        for row in results.latency:
            found, shape = ratios(row), "×".join(map(str, network(row["network"]).shape))
            cells = [f"{found[name]:.2f}" if name in found else "" for name in names[first : first + 6]]
            if any(cells):
                title = f"{network(row['network']).name}, {shape}"
                table.add_row(title, str(row["batch"]), f"{row['median_ms']['closed']:.2f}", *cells)
        console.print(table)
    if results.serving is not None:
        results.serving.tell(console)
    for line in (*results.told, *(f"WRONG: {line}" for line in results.wrong)):
        console.print(line, markup=False, highlight=False)


def as_json(results: Results) -> str:
    return json.dumps(asdict(results), indent=2) + "\n"


def run(arguments: argparse.Namespace, results: Results) -> None:
    clock, first = Clock(arguments.seconds), Clock(FIRST_SHARE * arguments.seconds)
    device, batches = results.device, arguments.batches
    served = "small" if arguments.dry_run else OPTIONS_OF
    of_options = OPTIONS_OF if OPTIONS_OF in arguments.only else arguments.only[0]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("served", *arguments.only)}
        for folder in folders.values():
            folder.mkdir()
        making = {name: [name, str(folders[name])] for name in arguments.only}
        found: dict[str, Answer] = {}
        with Makers({"served": [served, str(folders["served"]), device], **making}) as makers:
            # 1. The networks, each proven, then measured.
            until_served = Clock(LATENCY_SHARE * first.left)
            for done, name in enumerate(arguments.only):
                own = Clock(until_served.left / (len(arguments.only) - done))
                if makers.ready(name, first.left, results):
                    with telling(name, results):
                        opened = contestants(name, folders[name], device, batches, results)
                        found = opened if name == of_options else found
                        with telling(f"{name}, equivalence", results):
                            prove(name, folders[name], opened, results)
                        latency(name, opened, batches, own, results)
                    arguments.out.write_text(as_json(results))
            # 2. The service.
            if makers.ready("served", clock.left, results):
                seconds = SERVED_SHARE * first.left
                with telling("served", results):
                    results.serving = serve(served, folders["served"], device, seconds, results.wrong)
                arguments.out.write_text(as_json(results))
        # 3. One network compiled, and with options.
        if found:
            compiled(of_options, batches, found, Clock(COMPILED_SHARE * clock.left), results)
            arguments.out.write_text(as_json(results))
            with_options(of_options, folders[of_options], batches, found, clock, results)
    results.cudnn = loaded_cudnn() if device != "cpu" else None


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", nargs="+", choices=NETWORKS)
    parser.add_argument("--batches", type=parse_batches)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/gpu.json"))
    arguments = parser.parse_args(given)
    dry = arguments.dry_run
    arguments.device = arguments.device or ("cpu" if dry else "cuda")
    arguments.seconds = arguments.seconds or (100.0 if dry else 200.0)
    arguments.only = arguments.only or (["preact18"] if dry else list(FIRST))
    arguments.batches = arguments.batches or ((1, 2) if dry else (1, 8, 64, 256))
    return arguments


def main() -> None:
    arguments = parse()
    signal.signal(signal.SIGTERM, stop)
    machine = asdict(this_machine(gpu=arguments.device != "cpu"))
    results = Results(arguments.device, machine, tool_versions())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        run(arguments, results)
    except Stopped:
        results.told.append("stopped before its end")
    finally:
        arguments.out.write_text(as_json(results))
        tell(results, Console(width=150))
    if results.wrong:
        raise SystemExit("an answer was wrong")


if __name__ == "__main__":
    main()
