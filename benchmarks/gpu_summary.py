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
        lines += of_benchmark(results)
        lines += [_line("WRONG", text) for text in results["wrong"]]
        wrong |= bool(results["wrong"])
    except (OSError, ValueError) as error:
        lines, wrong = [*lines, _line("benchmark", f"no results: {error}")], True
    print("\n".join(lines))
    raise SystemExit(int(wrong))


if __name__ == "__main__":
    main()
