"""The report of an inspection: tables for a terminal, and an HTML page without external parts."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fold.errors import BnfoldError
from fold.inspection import Span, listed
from fold.reports.rendering import render
from fold.terminal import cut, escape

if TYPE_CHECKING:
    from rich.table import Table

    from fold.inspection import BatchNorm, FoldedTensor, HalfPrecision, Inspection, Suspicion

SPANS = frozenset({"γ", "β", "μ", "σ²", "Scale", "Stretch"})
"""Columns of two numbers of up to 8 characters, such as 1.23e-05."""
WORDS = frozenset({"BatchNorm", "Placement", "Into, or why not", "Weights", "float16"})
"""Columns of text; the others hold numbers."""


NARROW = 80
"""Columns of a terminal in which a table just fits."""
SUSPICIONS = 5
"""How many kinds of suspicions the short form lists; it counts the others."""


class Listing(NamedTuple):
    """A table whose cells are texts, with a heading and a note."""

    heading: str
    note: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]


def inspection_summary(inspection: "Inspection") -> str:
    """The number of BatchNorms, and how many of them would be folded."""
    count = len(inspection.batchnorms)
    opened = " with opened activations" if inspection.open_activations else ""
    if not count:
        return "the model has no BatchNorm"
    noun = "BatchNorm" if count == 1 else "BatchNorms"
    return f"{count} {noun}: {inspection.folded} would be folded{opened}, {count - inspection.folded} kept"


def suspicion_lines(inspection: "Inspection", *, everything: bool) -> list[str]:
    """A sentence for each kind of suspicion, the worst first. In the short form names are cut, others are counted, and
    so are kinds after the first `SUSPICIONS`."""
    if everything:
        return [suspicion_sentence(one) for one in inspection.suspicions]
    shown, more = inspection.suspicions[:SUSPICIONS], len(inspection.suspicions) - SUSPICIONS
    lines = [f"{cut(one.name)}{_others(len(one.also))}: {one.text}" for one in shown]
    return [*lines, f"{more} more kinds of findings"] if more > 0 else lines


def _others(count: int) -> str:
    return f" (and {count} other{'' if count == 1 else 's'})" if count else ""


def suspicion_sentence(suspicion: "Suspicion") -> str:
    """A suspicion as a sentence, with the names of the other BatchNorms that have it."""
    also = f" (also of {listed(suspicion.also)})" if suspicion.also else ""
    return f"{suspicion.name}: {suspicion.text}{also}"


def ranges(inspection: "Inspection") -> str:
    """The least and the largest γ, β, μ and σ² of all BatchNorms, and the numbers of dead and negative channels."""
    found = [one.statistics for one in inspection.batchnorms]
    spans = {
        "γ": [one.gamma for one in found],
        "β": [one.beta for one in found],
        "μ": [one.mean for one in found],
        "σ²": [one.variance for one in found],
    }
    counts = {"dead": sum(one.dead or 0 for one in found), "negative": sum(one.negative or 0 for one in found)}
    numbers = [f"{name} {_span(Span.around(each))}" for name, each in spans.items()]
    return ", ".join([*numbers, *(f"{count} {what}" for what, count in counts.items())])


def statistics_listing(inspection: "Inspection") -> Listing:
    return Listing(
        "Statistics",
        "From the least to the largest of all channels.",
        ("#", "BatchNorm", "Channels", "Placement", "Trained", "γ", "β", "μ", "σ²"),
        [(str(number), *_statistics_cells(one)) for number, one in enumerate(inspection.batchnorms, start=1)],
    )


def folding_listing(inspection: "Inspection") -> Listing:
    return Listing(
        "Folding",
        "Dead channels have γ = 0, negative ones γ < 0. Scale is |γ/√(σ² + ε)| of those that are not dead. Stretch is "
        "what single weights would be multiplied by. float16 tells what it would do to the weights, or to the "
        "parameters of a BatchNorm that is kept.",
        ("#", "BatchNorm", "Dead", "Negative", "σ² < ε", "Into, or why not", "Scale", "Stretch", "float16"),
        [(str(number), *_folding_cells(one)) for number, one in enumerate(inspection.batchnorms, start=1)],
    )


def weights_listing(inspection: "Inspection") -> Listing:
    return Listing(
        "Weights",
        "With all that folds into them. Largest is the largest magnitude, spread that of the largest output channel "
        "over that of the smallest.",
        ("Weights", "Largest before", "Largest after", "Spread before", "Spread after", "Stretch", "float16"),
        [_weights_cells(one) for one in inspection.weights],
    )


def inspection_table(listing: Listing, columns: int) -> "Table":
    """A listing as a table for a terminal of so many columns, 80 or more. Long names are cut in the middle."""
    from rich.table import Table  # noqa: PLC0415

    width, gap = columns // len(listing.headers) + 1, 1 if columns < 2 * NARROW else 2
    drawn = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for header in listing.headers:
        if header in WORDS:
            drawn.add_column(header, overflow="fold", min_width=width)  # no word is longer
        else:
            drawn.add_column(header, justify="right", overflow="fold", min_width=8 if header in SPANS else None)
    for row in listing.rows:
        drawn.add_row(*(escape(cut(cell, width)) for cell in row))
    return drawn


def check_inspection_page(path: Path) -> None:
    """Raise `BnfoldError` if no page can be written to a path, before a model is read."""
    if not path.parent.is_dir():
        raise BnfoldError(f"--html {path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise BnfoldError(f"--html {path}: is a folder; expected a file name")


def write_inspection_page(path: Path, inspection: "Inspection", source: str) -> None:
    """Write the page completely or not at all; an existing file is replaced."""
    check_inspection_page(path)
    page = inspection_page(inspection, source)
    try:
        _replace(path, page)
    except OSError as error:
        raise BnfoldError(f"--html {path}: cannot be written ({error.strerror})") from error


def inspection_page(inspection: "Inspection", source: str) -> str:
    """The page as HTML; `source` is its heading."""
    values = {
        "source": source,
        "summary": inspection_summary(inspection),
        "sentences": [suspicion_sentence(one) for one in inspection.suspicions],
        "listings": [make(inspection) for make in (statistics_listing, folding_listing, weights_listing)],
        "words": WORDS,
    }
    return render("inspection.html", values)


def _replace(path: Path, text: str) -> None:
    descriptor, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(written, 0o666 & ~mask)  # the permissions of a new file; those of a temporary file are stricter
        os.replace(written, path)
    except BaseException:
        os.unlink(written)
        raise


def _statistics_cells(one: "BatchNorm") -> tuple[str, ...]:
    found = one.statistics
    name = f"{one.name} (written out)" if found.written_out else one.name
    spans = (found.gamma, found.beta, found.mean, found.variance)
    return name, str(one.channels), str(one.placement), _trained(one), *map(_span, spans)


def _folding_cells(one: "BatchNorm") -> tuple[str, ...]:
    found = one.statistics
    where = f"kept: {one.why}" if one.into is None else ", ".join(one.into) or "nothing needs to change"
    counts = ("–" if count is None else str(count) for count in (found.dead, found.negative, found.tiny))
    return one.name, *counts, where, _span(found.scale), _span(one.stretch), _half(one.float16)


def _weights_cells(one: "FoldedTensor") -> tuple[str, ...]:
    numbers = (one.largest_before, one.largest, one.spread_before, one.spread)
    return one.name, *map(_number, numbers), _span(one.stretch), _half(one.float16)


def _trained(one: "BatchNorm") -> str:
    seen, trained = one.statistics.batches_seen, one.statistics.trained
    if trained is False:
        return "never"
    if seen is not None:
        return f"{seen} batches"
    return "–" if trained is None else "yes"


def _half(found: "HalfPrecision | None") -> str:
    """The effects of float16, or that it fits."""
    if found is None:
        return "–"
    counts = {"overflow": found.overflow, "lost": found.lost, "subnormal": found.subnormal}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "fits"


def _span(found: Span | None) -> str:
    if found is None:
        return "–"
    least, most = map(_number, found)
    return least if least == most else f"{least} … {most}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
