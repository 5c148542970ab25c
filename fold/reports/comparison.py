"""The report of a comparison: a table for a terminal, and a picture of the distance at each layer."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fold.reports.rendering import write_svg
from fold.reports.tables import Row, parts_table, verdict_rows
from fold.terminal import cut

if TYPE_CHECKING:
    from rich.table import Table

    from fold.comparison import Comparison

# Lengths in the picture, in pixels.
WIDTH, HEIGHT = 690, 220
FARTHEST, NEAREST = 0, -16
"""Powers of ten at the upper and the lower end of the picture's axis."""
NAME_LENGTH = 60


def comparison_table(comparison: "Comparison", *, every_output: bool = False) -> "Table":
    """A row for each part, as in the table of a certificate."""
    return parts_table(_rows(comparison), every_output=every_output)


def _rows(comparison: "Comparison") -> Iterator[Row]:
    for one in comparison.algebra:
        found, limit = f"{one.difference:.2g}", f"{one.limit:.2g}"
        yield Row("A  in float64", one.name, found, limit, one.compared, bool(one), one.share)
    yield from verdict_rows(comparison.verdict, "C  error as it is run", "A")


def write_comparison_picture(path: Path, comparison: "Comparison") -> None:
    """Write one SVG without external parts: for each tensor of A how far B's closest tensor is from it."""
    parting = comparison.parting
    layers = () if parting is None else parting.layers
    step = WIDTH / max(len(layers), 1)
    dots = [
        {
            "x": round(step * (place + 0.5), 1),
            "y": round(_height(layer.difference), 1),
            "what": f"{layer.tensor}, {layer.node}: {layer.difference:.2g}"
            + (f" from {layer.counterpart}" if layer.counterpart else ", none like it"),
            "parted": parting is not None and layer.difference > parting.tolerance,
        }
        for place, layer in enumerate(layers)
    ]
    first = next((dot for dot, layer in zip(dots, layers, strict=True) if parting and layer.node == parting.node), None)
    values = {
        "a": cut(comparison.a, NAME_LENGTH),
        "b": cut(comparison.b, NAME_LENGTH),
        "message": comparison.message,
        "dots": dots,
        "first": first,
        "node": parting.node if parting else "",
        "width": WIDTH,
        "height": HEIGHT,
        "ticks": [(round(_height(10.0**power), 1), power) for power in range(FARTHEST, NEAREST - 1, -4)],
        "tolerance": None if parting is None else round(_height(parting.tolerance), 1),
    }
    write_svg(path, "comparison.svg", values)


def _height(difference: float) -> float:
    """From the upper end of the axis."""
    power = FARTHEST if not difference < math.inf else math.log10(max(difference, 10.0**NEAREST))
    return HEIGHT * (FARTHEST - min(power, FARTHEST)) / (FARTHEST - NEAREST)
