"""The HTML report of a model: every BatchNorm, the certificate, and pictures of both graphs, without external parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fold.engine import FoldReport
from fold.reports.rendering import render

if TYPE_CHECKING:
    from fold.artifact import Manifest
    from fold.reports.observations import Observations


@dataclass(frozen=True)
class CertificatePart:
    """One part of the certificate: its question, the result (None if it was not computed), and whether it holds (None
    for a part without a limit)."""

    letter: str
    question: str
    found: str | None
    holds: bool | None


def write_html(path: Path, manifest: "Manifest", report: FoldReport, seen: "Observations") -> None:
    """Write the report of a model: its manifest with the verdict, the report of the fold, and the observations."""
    from fold.reports.pictures import draw  # noqa: PLC0415  # loads matplotlib

    values = {
        "manifest": manifest,
        "report": report,
        "parts": parts(manifest.verdict),
        "pictures": draw(seen),
        "numbers": seen.numbers,
    }
    path.write_text(render("report.html", values, {"size": _size}), encoding="utf-8")


def parts(verdict: dict[str, Any]) -> list[CertificatePart]:
    """The parts A to E of a certificate's JSON (docs/certificate.md), a row each."""
    return [
        _algebra(verdict["algebra"]),
        _rounding(verdict["rounding"]),
        _run_time(verdict["outputs"]),
        _decisions(verdict["decisions"]),
        _search(verdict["search"]),
    ]


def _algebra(algebra: dict[str, Any]) -> CertificatePart:
    # certificates from before 2026-12 have one limit for all families
    limited = [(family["difference"], family.get("limit", algebra["limit"])) for family in algebra["families"]]
    unlimited = next((pair for pair in limited if None in pair), None)
    difference, limit = unlimited or max(limited, key=lambda pair: pair[0] / pair[1])
    found = f"they differ by {_size(difference)} of the largest value, the limit is {_size(limit)}"
    question = "Algebra: are the graphs one function, before anything is rounded?"
    return CertificatePart("A", question, found, algebra["holds"])


def _rounding(rounding: dict[str, Any]) -> CertificatePart:
    unbounded = [output["name"] for output in rounding["outputs"] if output["bound"] is None]
    found = f"{rounding['wrong']} of {rounding['weights']} weights are wrong"
    # certificates without draws have a bound for the worst rounding of every layer
    others = "random roundings of them by at most" if "draws" in rounding else "the worst rounding of them by less than"
    found += "".join(
        f"; this changes {output['name']} by {_size(output['difference'])}, {others} {_size(output['bound'])}"
        for output in rounding["outputs"]
        if output["bound"] is not None
    )
    found += f"; no bound is known for {', '.join(unbounded)}" if unbounded else ""
    question = "Rounding: is each weight the exact one, rounded once?"
    return CertificatePart("B", question, found, rounding["holds"])


def _run_time(outputs: list[dict[str, Any]]) -> CertificatePart:
    found = "; ".join(
        f"{output['name']}: |F − R| is at most {_size(output['folded_error'])}, "
        f"|U − R| {_size(output['unfolded_error'])}, the limit is {_size(output['limit'])}"
        for output in outputs
    )
    question = "Error as served: is F as close to R as U is?"
    return CertificatePart("C", question, found, all(output["equivalent"] for output in outputs))


def _decisions(decisions: list[dict[str, Any]]) -> CertificatePart:
    found = "; ".join(
        f"{decision['name']}: the same on {decision['decisions'] - decision['flips']} of {decision['decisions']}"
        + (f"; rounding explains {decision['excused']}" if decision["excused"] else "")
        for decision in decisions
    )
    question = "Decisions: does the served graph decide as the unfolded model does?"
    holds = all(decision["flips"] == decision["excused"] for decision in decisions)
    return CertificatePart("D", question, found or "no output decides between classes", holds)


def _search(search: dict[str, Any] | None) -> CertificatePart:
    found = "; ".join(
        f"{name}: {_size(output['found'])} of the largest value at most, {_size(output['start'])} before the search"
        for name, output in (search or {"outputs": {}})["outputs"].items()
    )
    return CertificatePart("E", "Search: which input makes them differ most, and how much?", found or None, None)


def _size(value: float | None) -> str:
    """Three significant digits. JSON has null for infinity and NaN."""
    return "not finite" if value is None else f"{value:.3g}"
