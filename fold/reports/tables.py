"""Tables of a fold and of its certificate, for a terminal."""

from typing import TYPE_CHECKING

from fold.engine import FoldReport
from fold.terminal import escape

if TYPE_CHECKING:
    from rich.table import Table

    from fold.proof import Certificate


def fold_table(report: FoldReport) -> "Table":
    """A row for each BatchNorm, kept ones first, because the user must see these."""
    from rich.table import Table  # noqa: PLC0415

    table = Table("BatchNorm", "Channels", "", "Into, or why not", box=None, pad_edge=False, header_style="bold")
    for kept in report.kept:
        table.add_row(escape(kept.name), str(kept.channels), "[yellow]kept[/]", escape(kept.reason))
    for folded in report.folded:
        what = escape(", ".join(folded.into)) or "nothing needed to change"
        warning = f" [yellow]({folded.warning})[/]" if folded.warning else ""
        table.add_row(escape(folded.name), str(folded.channels), "[green]folded[/]", what + warning)
    return table


def certificate_table(certificate: "Certificate") -> "Table":
    """A row for each part of the certificate, and for each output of the part that compares outputs."""
    from rich.table import Table  # noqa: PLC0415

    algebra, rounding, verdict = certificate.algebra, certificate.rounding, certificate.verdict
    table = Table("Part", "Found", "Limit", "Compared", "", box=None, pad_edge=False, header_style="bold")

    def add(part: str, found: str, limit: str, compared: int, holds: object) -> None:
        table.add_row(
            escape(part), found, limit, str(compared), "[green]holds[/]" if holds else "[red]does NOT hold[/]"
        )

    add("A  algebra, in float64", f"{algebra.worst.difference:.2g}", f"{algebra.limit:.2g}", algebra.compared, algebra)
    wrong = f"{len(rounding.faults)} of {rounding.weights} wrong"
    add("B  rounding of the weights", wrong, "0", rounding.weights, not rounding.faults)
    for part in rounding.outputs:
        limit = "unknown" if part.bound is None else f"{part.bound:.3g}"
        add(f"B  what it does to {part.name}", f"{part.difference:.3g}", limit, part.compared, part)
    for output in verdict.outputs:
        if output.doubted:
            apart = f"{output.unfolded_error:.3g} between float64 and {verdict.precision}, unfolded"
            add(f"C  reference, {output.name}", apart, f"{output.unfolded_limit:.3g}", output.compared, False)
            continue
        found = f"{output.folded_error:.3g} (unfolded {output.unfolded_error:.3g})"
        add(f"C  run time, {output.name}", found, f"{output.limit:.3g}", output.compared, output.equivalent)
    for decision in verdict.decisions:
        found = f"{decision.flips} of {decision.decisions} decide otherwise"
        add(f"D  decisions, {decision.name}", found, f"{decision.excused} by rounding", decision.decisions, decision)
    if certificate.search is not None:
        for name, worst in certificate.search.outputs.items():
            found = f"{worst.found:.3g} (at the start {worst.start:.3g})"
            add(f"E  search, {name}", found, "", worst.compared, worst.compared > 0)
    return table
