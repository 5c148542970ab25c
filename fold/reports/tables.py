"""Texts and tables of a fold and of its certificate, for a terminal.

The short form has at most 25 lines of 80 columns for a network of 50 BatchNorms; `--all` prints everything.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fold.engine import Affines, FoldReport, Reason
from fold.terminal import NAME_WIDTH, cut, escape

if TYPE_CHECKING:
    from rich.table import Table

    from fold.proof import Certificate, Verdict

KINDS = 3
"""How many kinds of reasons the short form lists; it counts the others."""


def fold_summary(report: FoldReport) -> list[str]:
    """What a user must see of a fold: which BatchNorms stay, of which there is a warning, and the numbers, last."""
    lines = kept_lines([(kept.name, kept.why) for kept in report.kept])
    warned: dict[str, list[str]] = {}
    for folded in report.folded:
        if folded.warning is not None:
            warned.setdefault(folded.warning, []).append(folded.name)
    lines += [f"[yellow]folded[/] {escape(_first(names))}: {escape(warning)}" for warning, names in warned.items()]
    noun = "BatchNorm" if report.batchnorms == 1 else "BatchNorms"
    hint = " --all lists each of them." if report.batchnorms else ""
    if report.affines:
        lines.append(affines_line(report.affines))
    return [
        *lines,
        f"{report.batchnorms} {noun}: [bold]{len(report.folded)} folded[/], {len(report.kept)} kept; "
        f"{report.branches_merged} parallel branches merged; {report.seconds:.2f} s.{hint}",
    ]


def affines_line(affines: Sequence[Affines]) -> str:
    """What became of the products and sums with constants that are no BatchNorm, in one line."""
    return f"no BatchNorm: {'; '.join(map(str, affines))}"


def kept_lines(kept: Sequence[tuple[str, Reason]]) -> list[str]:
    """A line for each kind of reason, the most frequent first: the name of the first BatchNorm that stays for it, how
    many others do, and the reason of the first."""
    kinds: dict[object, list[tuple[str, Reason]]] = {}
    for name, why in kept:
        kinds.setdefault(why.code, []).append((name, why))
    ordered = sorted(kinds.values(), key=len, reverse=True)
    lines = []
    for found in ordered[:KINDS]:
        names = [name for name, _ in found]
        lines.append(f"[yellow]kept[/] {escape(_first(names))}: {escape(cut(str(found[0][1])))}")
    if others := ordered[KINDS:]:
        lines.append(f"[yellow]kept[/] {sum(map(len, others))} more, for {len(others)} other kinds of reasons")
    return lines


def _first(names: Sequence[str]) -> str:
    return cut(names[0]) + (f" and {len(names) - 1} more of this kind" if len(names) > 1 else "")


def fold_table(report: FoldReport, width: int) -> "Table":
    """A row for each BatchNorm, kept ones first, because the user must see these. Names longer than `width` are cut in
    the middle."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("BatchNorm", no_wrap=True)
    table.add_column("Channels", justify="right")
    table.add_column("")
    table.add_column("Into, or why not")
    for kept in report.kept:
        cells = escape(cut(kept.name, width)), str(kept.channels), "[yellow]kept[/]", escape(cut(kept.reason, width))
        table.add_row(*cells)
    for folded in report.folded:
        what = escape(cut(", ".join(folded.into), width)) or "nothing needed to change"
        warning = f" [yellow]({folded.warning})[/]" if folded.warning else ""
        table.add_row(escape(cut(folded.name, width)), str(folded.channels), "[green]folded[/]", what + warning)
    return table


class Row(NamedTuple):
    """A row of the table of a proof: a part, or one output of a part. `share` is `found` over `limit`."""

    part: str
    output: str
    found: str
    limit: str
    compared: int
    holds: bool
    share: float = 0.0


def certificate_table(certificate: "Certificate", *, every_output: bool = False) -> "Table":
    """A row for each part of the certificate. Parts that compare outputs have a row for the worst
    of these, or for each."""
    return parts_table(_rows(certificate), every_output=every_output)


def parts_table(rows: Iterable[Row], *, every_output: bool = False) -> "Table":
    """A row for each part; of several outputs the worst, or each."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("Part", "Found", "Limit", "Compared", ""):
        table.add_column(header, justify="right" if header == "Compared" else "left")
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.part, []).append(row)
    for part, of_part in parts.items():
        worst = max(of_part, key=lambda row: (not row.holds, row.share))
        for row in of_part if every_output else [worst]:
            which = f", {cut(row.output, NAME_WIDTH // 2)}" if every_output else f", worst of {len(of_part)}"
            verdict = "[green]holds[/]" if row.holds else "[red]does NOT hold[/]"
            table.add_row(escape(part + which * (len(of_part) > 1)), row.found, row.limit, str(row.compared), verdict)
    return table


def verdict_rows(verdict: "Verdict", part: str, other: str) -> Iterator[Row]:
    """Parts C and D. `part` is what C is called, and `other` what U is the error of."""
    for output in verdict.outputs:
        if output.doubted:
            found, limit = f"{other} {output.unfolded_error:.3g}", f"{output.unfolded_limit:.3g}"
            yield Row("C  reference", output.name, found, limit, output.compared, False)
            continue
        found = f"{output.folded_error:.3g} ({other} {output.unfolded_error:.3g})"
        limit, holds = f"{output.limit:.3g}", output.equivalent
        yield Row(part, output.name, found, limit, output.compared, holds, output.share)
    for one in verdict.decisions:
        found, limit = f"{one.decisions - one.flips} the same", f"all but {one.excused}" if one.excused else "all"
        share = one.flips / max(one.decisions, 1)
        yield Row("D  decisions", one.name, found, limit, one.decisions, bool(one), share)


def _rows(certificate: "Certificate") -> Iterator[Row]:
    algebra, rounding, verdict = certificate.algebra, certificate.rounding, certificate.verdict
    difference, limit = f"{algebra.worst.difference:.2g}", f"{algebra.worst.limit:.2g}"
    yield Row("A  algebra in float64", "", difference, limit, algebra.compared, bool(algebra))
    wrong = f"{len(rounding.faults)} of {rounding.weights} wrong"
    yield Row("B  rounded weights", "", wrong, "0", rounding.weights, not rounding.faults)
    for effect in rounding.outputs:
        found, limit = f"{effect.difference:.3g}", "none" if effect.bound is None else f"{effect.bound:.3g}"
        share = effect.ratio or 0.0
        yield Row("B  effect of rounding", effect.name, found, limit, effect.compared, bool(effect), share)
    yield from verdict_rows(verdict, "C  error as served", "unfolded")
    if certificate.search is not None:
        for name, worst in certificate.search.outputs.items():
            found = f"{worst.found:.3g} (at the start {worst.start:.3g})"
            yield Row("E  search", name, found, "", worst.compared, worst.compared > 0, worst.found)
