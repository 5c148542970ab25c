"""The report of a comparison: a table for a terminal, and a picture of the distance at each layer."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fold.reports.rendering import write_svg
from fold.terminal import cut, escape

if TYPE_CHECKING:
    from rich.table import Table

    from fold.comparison import Comparison

# Lengths in the picture, in pixels.
WIDTH, HEIGHT = 690, 220
FARTHEST, NEAREST = 0, -16
"""Powers of ten at the upper and the lower end of the picture's axis."""
NAME_LENGTH = 60


def comparison_table(comparison: "Comparison") -> "Table":
    """A row for each output and part."""
    from rich.table import Table  # noqa: PLC0415

    table = Table("Part", "Found", "Limit", "Compared", "", box=None, pad_edge=False, header_style="bold")

    def add(part: str, found: str, limit: str, compared: int, holds: object) -> None:
        table.add_row(
            escape(part), found, limit, str(compared), "[green]holds[/]" if holds else "[red]does NOT hold[/]"
        )

    for one in comparison.algebra:
        add(f"A  in float64, {one.name}", f"{one.difference:.2g}", f"{one.limit:.2g}", one.compared, one)
    for output in comparison.verdict.outputs:
        found = f"{output.folded_error:.3g} (A {output.unfolded_error:.3g})"
        add(f"C  as it is run, {output.name}", found, f"{output.limit:.3g}", output.compared, output.equivalent)
    for decision in comparison.verdict.decisions:
        found = f"{decision.flips} of {decision.decisions} differ"
        add(f"D  decisions, {decision.name}", found, f"{decision.excused} by rounding", decision.decisions, decision)
    return table


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
