"""What became of every BatchNorm, the certificate and pictures of both graphs, in one page that needs no network."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fold.engine import FoldReport

if TYPE_CHECKING:
    from fold.artifact import Manifest
    from fold.reports.observations import Observations


@dataclass(frozen=True)
class Part:
    """One part of the certificate: what it asks, what was found, and whether it holds; None where nothing is demanded
    of it."""

    letter: str
    question: str
    found: str
    holds: bool | None


def write_html(path: Path, manifest: "Manifest", report: FoldReport, seen: "Observations") -> None:
    """Write the report of a model: `manifest` with its verdict, and what was seen of both graphs."""
    from jinja2 import Environment, PackageLoader, select_autoescape  # noqa: PLC0415

    from fold.reports.pictures import draw  # noqa: PLC0415  # loads matplotlib

    environment = Environment(
        loader=PackageLoader("fold.reports"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["size"] = _size
    page = environment.get_template("report.html").render(
        manifest=manifest, report=report, parts=parts(manifest.verdict), pictures=draw(seen), numbers=seen.numbers
    )
    path.write_text(page, encoding="utf-8")


def parts(verdict: dict[str, Any]) -> list[Part]:
    """The parts A to E of a certificate's JSON (fold.proof.certificate), a row each."""
    algebra, rounding, search = verdict["algebra"], verdict["rounding"], verdict["search"]
    differences = [family["difference"] for family in algebra["families"]]
    worst = None if None in differences else max(differences)
    unbounded = [output["name"] for output in rounding["outputs"] if output["bound"] is None]
    weights = f"{rounding['wrong']} of {rounding['weights']} weights are wrong"
    weights += "".join(
        f"; {output['name']} moves by {_size(output['difference'])}, the bound is {_size(output['bound'])}"
        for output in rounding["outputs"]
        if output["bound"] is not None
    )
    weights += f"; no bound is known for {', '.join(unbounded)}" if unbounded else ""
    outputs = "; ".join(
        f"{output['name']}: {_size(output['folded_error'])}, unfolded {_size(output['unfolded_error'])}, "
        f"limit {_size(output['limit'])}"
        for output in verdict["outputs"]
    )
    decisions = "; ".join(
        f"{decision['name']}: {decision['flips']} of {decision['decisions']} decide otherwise, "
        f"{decision['excused']} of these by rounding"
        for decision in verdict["decisions"]
    )
    found = [
        Part(
            "A",
            "Algebra: are the graphs one function, before anything is rounded?",
            f"they differ by {_size(worst)} of the largest value, the limit is {_size(algebra['limit'])}",
            algebra["holds"],
        ),
        Part("B", "Rounding: is each weight the exact one, rounded once?", weights, rounding["holds"]),
        Part(
            "C",
            "Run time: is what is served as near to float64 as the unfolded model?",
            outputs,
            all(output["equivalent"] for output in verdict["outputs"]),
        ),
        Part(
            "D",
            "Decisions: does it decide as the unfolded model does?",
            decisions or "no output decides between classes",
            all(decision["flips"] == decision["excused"] for decision in verdict["decisions"]),
        ),
    ]
    searched = (
        f"{name}: {_size(output['found'])} of the largest value at most, {_size(output['start'])} before the search"
        for name, output in (search or {"outputs": {}})["outputs"].items()
    )
    return [
        *found,
        Part("E", "Search: how far apart can an input set them?", "; ".join(searched) or "not asked for", None),
    ]


def _size(value: float | None) -> str:
    """Three significant digits; JSON has null for what is infinite or no number."""
    return "not finite" if value is None else f"{value:.3g}"
