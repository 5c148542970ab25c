"""The report of a benchmark: a table for a terminal, and a picture."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fold.reports.rendering import write_svg

if TYPE_CHECKING:
    from rich.table import Table

    from fold.bench import Benchmark, Measurement, Timing

# Lengths in the picture, in pixels; the template has the positions of everything else.
BARS_WIDTH = 430
BAR_HEIGHT, BAR_GAP, GROUP_GAP = 16, 3, 18
PANEL_HEAD, PANEL_FOOT = 44, 54
CAPTION_HEIGHT = 19
HEAD, FOOT = 96, 16
TICKS = 5


def captions(benchmark: "Benchmark") -> list[str]:
    """The graphs, the method, the machine and the versions, a line each."""
    machine, graphs = benchmark.machine, {"unfolded": benchmark.unfolded, "folded": benchmark.folded}
    hardware = f"{machine.cpu}, {machine.cores} cores" + (f"; {machine.gpu}" if machine.gpu else "")
    threads = f", {benchmark.threads} threads" if benchmark.threads else ""
    return [
        *(
            f"{name}: {g.file}, {g.batchnorms} BatchNorms, {g.operators} operators, {g.precision}"
            for name, g in graphs.items()
        ),
        f"median and quartiles of {benchmark.rounds} rounds in turn{threads}; answers checked against float64 before",
        f"{hardware}; {benchmark.measured}",
        ", ".join(f"{tool} {version}" for tool, version in benchmark.versions.items()),
    ]


def bench_table(benchmark: "Benchmark") -> "Table":
    """Two rows for each provider and batch: the unfolded and the folded graph."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("Provider", "Batch", "Graph", "Median ms", "Quartiles ms", "Rows/s", "Unfolded/folded"):
        table.add_column(header, justify="left" if header in ("Provider", "Graph") else "right")
    for found in benchmark.measurements:
        table.add_row(found.provider, str(found.batch), "unfolded", *_cells(found.unfolded), "")
        table.add_row("", "", "folded", *_cells(found.folded), f"[bold]{found.ratio:.2f}[/]")
    return table


def write_picture(path: Path, benchmark: "Benchmark") -> None:
    """Write bars of the median latency as one SVG without external parts: a panel for each provider, a pair of bars for
    each batch."""
    notes = captions(benchmark)
    top, panels = HEAD, []
    for provider in dict.fromkeys(found.provider for found in benchmark.measurements):
        panel = _panel([found for found in benchmark.measurements if found.provider == provider])
        hardware = benchmark.machine.gpu if provider == "cuda" else benchmark.machine.cpu
        panels.append({**panel, "top": top, "heading": provider.upper() + (f": {hardware}" if hardware else "")})
        top += panel["height"]
    values = {
        "model": f"{benchmark.model} version {benchmark.version}",
        "panels": panels,
        "captions": notes,
        "captions_top": top + FOOT,
        "caption_height": CAPTION_HEIGHT,
        "bar_height": BAR_HEIGHT,
        "height": top + FOOT + CAPTION_HEIGHT * len(notes) + FOOT,
    }
    write_svg(path, "bench.svg", values)


def _panel(found: "list[Measurement]") -> dict[str, Any]:
    """Positions within one panel, from its top and from the left end of its bars. Its bars share one scale."""
    longest = max(timing.third_quartile_ms for one in found for timing in (one.unfolded, one.folded))
    step = _tick_step(longest)
    scale = BARS_WIDTH / longest
    y, groups = PANEL_HEAD, []
    for one in found:
        bars = []
        for name, timing in (("unfolded", one.unfolded), ("folded", one.folded)):
            bars.append(
                {
                    "name": name,
                    "y": y,
                    "width": round(scale * timing.median_ms, 2),
                    "low": round(scale * timing.first_quartile_ms, 2),
                    "high": round(scale * timing.third_quartile_ms, 2),
                    "label": f"{_three_digits(timing.median_ms)} ms",
                    "quartiles": _quartiles(timing),
                }
            )
            y += BAR_HEIGHT + BAR_GAP
        middle = y - BAR_GAP - BAR_HEIGHT - BAR_GAP / 2
        groups.append({"batch": one.batch, "ratio": f"{one.ratio:.2f}×", "middle": middle, "bars": bars})
        y += GROUP_GAP - BAR_GAP
    ticks = [(round(scale * step * i, 2), f"{step * i:g}") for i in range(math.floor(longest / step) + 1)]
    return {"groups": groups, "ticks": ticks, "axis": y, "first": PANEL_HEAD, "height": y + PANEL_FOOT}


def _tick_step(longest: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, so that about `TICKS` of them reach `longest`."""
    rough = longest / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)


def _cells(timing: "Timing") -> tuple[str, str, str]:
    return _three_digits(timing.median_ms), _quartiles(timing), _three_digits(timing.rows_per_second)


def _quartiles(timing: "Timing") -> str:
    return f"{_three_digits(timing.first_quartile_ms)} to {_three_digits(timing.third_quartile_ms)}"


def _three_digits(value: float) -> str:
    """A positive number with three significant digits and no exponent, or all digits of its integer part if it is 100
    or more."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
