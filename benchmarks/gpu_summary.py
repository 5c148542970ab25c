"""Prints the short table of scripts/gpu-check, from the tests' outcomes (tests/gpu/conftest.py) and the benchmark's
JSON.

    python -m benchmarks.gpu_summary OUTCOMES BENCHMARK.json

The exit code is 1 if an answer was wrong, a test failed, or a file is missing.
"""

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CERTIFICATE = "test_certificate_holds_on_the_device"
SHOWN = ("unfolded", "opened", "PyTorch", "PyTorch fp16", "torch.compile", "closed fp16, NHWC", "torch.compile fp16")
WIDTH = 34
BRANCHED = ("repvgg_a0", "mobileone_s0", "fastvit_t8")
BRANCHES_MERGED, OF_COMPILED, OF_BEST, P99_OVER_P50 = 1.4, 0.9, 0.9, 3.0
"""The goals: how much faster a graph is whose branches are merged, float16 beside `torch.compile`, the service beside
its session, and the spread of its latencies at mixed sizes."""


@dataclass(frozen=True)
class Case:
    """A test: the name of its function, its parameters, and `passed`, `failed`, `skipped` or `not run` (no time
    left)."""

    name: str
    given: str
    outcome: str


def read_cases(path: Path) -> list[Case]:
    found = []
    for line in path.read_text().splitlines():
        outcome, _, test = line.partition("\t")
        name, _, given = re.sub(r"@[^\]]*$", "", test).partition("[")
        found.append(Case(name, given.removesuffix("]"), outcome))
    return found


def of_tests(cases: list[Case]) -> list[str]:
    """A line for each precision, one for all other tests, and one for each failed test."""
    lines = []
    certified = [case for case in cases if case.name == CERTIFICATE]
    for precision in dict.fromkeys(case.given.rpartition("-")[2] for case in certified):
        of = Counter(case.outcome for case in certified if case.given.rpartition("-")[2] == precision)
        rest = "".join(f", {count} {outcome}" for outcome, count in of.items() if outcome != "passed")
        lines.append(_line(f"equivalence in {precision}", f"{of['passed']} of {of.total()} architectures{rest}"))
    others = Counter(case.outcome for case in cases if case.name != CERTIFICATE)
    lines.append(_line("other tests", ", ".join(f"{count} {outcome}" for outcome, count in sorted(others.items()))))
    lines += [_line("FAILED", f"{case.name}[{case.given}]") for case in cases if case.outcome == "failed"]
    return lines


def of_benchmark(results: dict[str, Any]) -> list[str]:
    """Equivalence, ratios to the closed graph, the service's share of R*, and where it ran."""
    lines = []
    for precision in dict.fromkeys(one["precision"] for one in results["equivalence"]):
        holds = [one["equivalent"] for one in results["equivalence"] if one["precision"] == precision]
        lines.append(_line(f"networks in {precision}", f"{sum(holds)} of {len(holds)} equivalent"))
    for row in results["latency"]:
        medians = row["median_ms"]
        shown = [
            f"{name} {medians[name] / medians['closed']:.2f}" for name in SHOWN if {name, "closed"} <= set(medians)
        ]
        lines.append(_line(f"{row['network']}, {row['batch']} rows", f"{', '.join(shown)} of closed"))
    serving = results["serving"]
    if serving is not None:
        for connections, seen in (serving["seen"] | {"16 mixed": serving["mixed"]}).items():
            told = f"{seen['rows'] / seen['seconds'] / serving['best']:.3f} of R*, p50 {seen['p50']:.2f} ms"
            counted = f"p99 {seen['p99']:.2f} ms, {seen['wrong']} wrong, {seen['failed']} failed"
            lines.append(_line(f"served, {connections} connections", f"{told}, {counted}"))
        lines.append(_line("cold shapes while serving", f"{serving['cold_shapes']:.0f}"))
    machine = results["machine"]
    versions = {
        name: version for name, version in results["versions"].items() if re.match("python|torch|onnxrun", name)
    }
    lines.append(_line("cuDNN", results["cudnn"] or "none"))
    lines.append(_line("machine", machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, no GPU"))
    lines.append(_line("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return lines + [_line("not measured", text) for text in results["told"]]


def of_goals(results: dict[str, Any]) -> list[str]:
    """Whether each goal is reached, with the number that is furthest from it."""

    def least(other: str, base: str, network: str = "") -> tuple[float, str] | None:
        rows = [row for row in results["latency"] if network in ("", row["network"])]
        both = [(row, row["median_ms"]) for row in rows if {other, base} <= set(row["median_ms"])]
        found = [(times[other] / times[base], f" ({row['network']}, {row['batch']} rows)") for row, times in both]
        return min(found, default=None)

    def told(name: str, number: float, where: str, *, reached: bool) -> str:
        return _line(f"goal: {name}", f"{'reached' if reached else 'NOT reached'}: {number:.2f}{where}")

    ratios = [("never slower than unfolded", 1.0, least("unfolded", "closed"))]
    for network in BRANCHED:
        found = least("unfolded", "closed", network)
        ratios.append((f"{network} {BRANCHES_MERGED} times", BRANCHES_MERGED, found))
    found = least("torch.compile fp16", "closed fp16, NHWC")
    ratios.append((f"fp16 {OF_COMPILED} of compiled", OF_COMPILED, found))
    lines = [
        told(name, *found, reached=found[0] >= limit) if found else _line(f"goal: {name}", "not measured")
        for name, limit, found in ratios
    ]
    serving = results["serving"]
    if serving is None:
        return [*lines, _line("goal: served", "not measured")]
    seen, mixed = serving["seen"]["64"], serving["mixed"]
    share, spread = seen["rows"] / seen["seconds"] / serving["best"], mixed["p99"] / mixed["p50"]
    return [
        *lines,
        told(f"served {OF_BEST} of R*", share, "", reached=share >= OF_BEST),
        told(f"mixed p99 < {P99_OVER_P50:.0f} p50", spread, "", reached=spread < P99_OVER_P50),
    ]


def _line(name: str, text: str) -> str:
    return f"{name:{WIDTH}}{text}"


def main() -> None:
    wrong, lines = False, []
    tests, benchmark = map(Path, sys.argv[1:])
    try:
        cases = read_cases(tests)
        lines += of_tests(cases)
        wrong |= not cases or any(case.outcome == "failed" for case in cases)
    except OSError as error:
        lines, wrong = [_line("tests", f"no report: {error}")], True
    try:
        results = json.loads(benchmark.read_text())
        lines += [*of_benchmark(results), *of_goals(results)]
        lines += [_line("WRONG", text) for text in results["wrong"]]
        wrong |= bool(results["wrong"])
    except (OSError, ValueError) as error:
        lines, wrong = [*lines, _line("benchmark", f"no results: {error}")], True
    print("\n".join(lines))
    raise SystemExit(int(wrong))


if __name__ == "__main__":
    main()
