"""The pictures of a report, drawn by matplotlib from observations, each with a text that gives the same numbers.

Blue is unfolded and orange folded, in every picture; the two differ in more than colour. BatchNorms have numbers here,
which the report's tables explain, because names would not fit on a phone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fold.inspection import evenly
from fold.reports.observations import Activations, Observations, Spread
from fold.reports.svg import INK, inline, styled

UNFOLDED, FOLDED = "#3b82f6", "#d97706"
"""At least 3:1 against a white page and a black one."""
WIDTH, HEIGHT = 4.5, 3.1
"""Inches of 72 units. As wide as a phone, so that a picture is never shrunk."""
SPREAD_COLOURS = (INK, UNFOLDED, FOLDED)
FILLED = 0.4
"""The opacity of fills; outlines are opaque."""
BINS = 30
COLUMNS = 3
STRETCHES, TICKS = 60, 10
"""The most BatchNorms, and the most of their numbers, that fit beside one another."""


@dataclass(frozen=True)
class Picture:
    """`svg` is None where there is nothing to draw; `text` describes the picture, or says why there is none."""

    name: str
    heading: str
    text: str
    svg: str | None


def draw(seen: Observations) -> list[Picture]:
    """All pictures, in the report's order. The same observations give the same bytes."""
    with styled():
        return [_picture(seen, *each) for each in PICTURES]


class Drawn(NamedTuple):
    """A figure, the text below it, and more text for readers who do not see it."""

    figure: Figure | None
    text: str
    more: str = ""


def _picture(seen: Observations, name: str, heading: str, drawing: Callable[[Observations], Drawn]) -> Picture:
    if name in seen.missing:
        return Picture(name, heading, f"Not shown: {seen.missing[name]}.", None)
    figure, text, more = drawing(seen)
    svg = None if figure is None else inline(figure, f"picture-{name}", heading, f"{text} {more}".strip())
    return Picture(name, heading, text, svg)


def _errors(seen: Observations) -> Drawn:
    errors = seen.errors
    if errors is None or not errors.unfolded.size:
        return Drawn(None, "Not shown: the graph has no output of finite floating-point numbers.")
    series = (("unfolded", errors.unfolded, UNFOLDED), ("folded", errors.folded, FOLDED))
    text = f"Over {errors.unfolded.size} numbers of the outputs, {_counted(seen.rows, 'row')} of input: " + "; ".join(
        f"the {name} graph is {_number(np.median(found))} from float64 at the median, {_number(found.max())} at most, "
        f"and {np.count_nonzero(found == 0)} are exact"
        for name, found, _ in series
    )
    logs = [np.log10(found[found > 0]) for _, found, _ in series]
    every = np.concatenate(logs)
    if not every.size:
        return Drawn(None, f"{text}. Nothing is left to draw.")
    bins = np.linspace(np.floor(every.min()), np.ceil(every.max() + 1e-9), BINS + 1)
    figure, axes = _figure()
    for (name, _, colour), found in zip(series, logs, strict=True):
        fill = {"folded": (colour, FILLED)}.get(name, "none")
        axes.stairs(np.histogram(found, bins)[0], bins, fill=True, fc=fill, ec=colour, linewidth=1.5, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda exponent, _: _power(round(exponent))))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="distance from float64", ylabel="numbers")
    _legend(axes)
    return Drawn(figure, text + ".")


def _layers(seen: Observations) -> Drawn:
    shared = [layer for layer in seen.layers if layer.folded is not None]
    if not shared:
        return Drawn(None, "Not shown: the two graphs share no layer whose error could be seen.")
    at = {"unfolded": np.arange(1, len(seen.layers) + 1)}
    at["folded"] = np.array([n for n, layer in enumerate(seen.layers, start=1) if layer.folded is not None])
    found = {"unfolded": [layer.unfolded for layer in seen.layers], "folded": [layer.folded or 0.0 for layer in shared]}
    names = {"unfolded": [layer.name for layer in seen.layers], "folded": [layer.name for layer in shared]}
    chosen = "" if len(seen.layers) == seen.tensors else f", of {seen.tensors} chosen at even distances"
    text = f"In {_counted(len(seen.layers), 'layer')}{chosen}, each computed node by node: " + "; ".join(
        f"the {name} graph is furthest from float64 in {names[name][int(np.argmax(errors))]}, by "
        f"{_number(max(errors))} of the largest value; at the median of its {_counted(len(errors), 'layer')} by "
        f"{_number(np.median(errors))}"
        for name, errors in found.items()
    )
    if not any(error > 0 for errors in found.values() for error in errors):
        return Drawn(None, f"{text}. Nothing is left to draw.")
    figure, axes = _figure()
    for name, colour, marker in (("unfolded", UNFOLDED, "o"), ("folded", FOLDED, "s")):
        errors = np.array(found[name])
        size = 4 if len(errors) <= 60 else 2
        drawn = errors > 0
        axes.plot(at[name][drawn], errors[drawn], color=colour, marker=marker, markersize=size, linewidth=1, label=name)
    _log_axis(axes, [error for errors in found.values() for error in errors])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="layer, in the order of the graph", ylabel="error / largest value")
    _legend(axes)
    zeros = sum(error == 0 for errors in found.values() for error in errors)
    return Drawn(figure, text + (f"; {zeros} errors of exactly 0 are not drawn." if zeros else "."))


def _activations(seen: Observations) -> Drawn:
    if not seen.activations:
        return Drawn(None, "Not shown: no BatchNorm reads and writes a tensor that could be seen.")
    some = "" if len(seen.activations) == len(seen.numbers) else f" of {len(seen.numbers)}, chosen at even distances"
    text = (
        f"{_counted(len(seen.activations), 'BatchNorm')}{some}, and the tensor of the folded graph that replaces "
        "both. Each line reaches from the 1st to the 99th percentile, the box holds the middle half, the bar is the "
        "median."
    )
    if any(one.folded is None for one in seen.activations):
        text += " Where the third is missing, no tensor of the folded graph replaces the other two."
    medians = (f"#{one.number} " + ", ".join(map(_number, _medians(one))) for one in seen.activations)
    more = f"Medians before, after, and as folded: {'; '.join(medians)}."
    rows = -(-len(seen.activations) // COLUMNS)
    height = 0.6 + 1.05 * rows
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(left=0.1, right=0.99, top=1 - 0.5 / height, bottom=0.1 / height, wspace=0.45, hspace=0.35)
    for index, one in enumerate(seen.activations):
        axes = figure.add_subplot(rows, COLUMNS, index + 1)
        _boxes(axes, [spread for spread in (one.before, one.after, one.folded) if spread is not None])
        axes.set_title(f"#{one.number}", pad=3)
        axes.set_xlim(-0.6, 2.6)
        axes.set_xticks([])
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(length=2, pad=2)
    named = zip(("before", "after", "folded"), SPREAD_COLOURS, strict=True)
    keys = [Patch(facecolor=(colour, FILLED), edgecolor=colour, label=name) for name, colour in named]
    figure.legend(handles=keys, loc="upper left", ncols=3, borderaxespad=0)
    return Drawn(figure, text, more)


def _stretches(seen: Observations) -> Drawn:
    if not seen.stretches:
        return Drawn(None, "Not shown: no BatchNorm was folded with a scale that can be compared.")
    shown = evenly(seen.stretches, STRETCHES)
    some = "" if len(shown) == len(seen.stretches) else f"{len(shown)} of them, chosen at even distances, are drawn. "
    text = (
        f"{_counted(len(seen.stretches), 'folded BatchNorm')}. {some}Each line reaches from the least to the most that "
        "a channel's weights were multiplied by, the mark is the median. "
    )
    widest: list[str] = []
    for where, ranges in (
        ("before", [one.before for one in seen.stretches]),
        ("behind", [one.behind for one in seen.stretches]),
    ):
        least, most = min(r.least for r in ranges), max(r.most for r in ranges)
        widest.append(f"the weights {where} a BatchNorm by {_number(least)} to {_number(most)}")
    figure, axes = _figure()
    places = np.arange(len(shown))
    for where, offset, marker, style in (("before", -0.15, "o", "-"), ("behind", 0.15, "s", ":")):
        ranges = [getattr(one, where) for one in shown]
        colour = FOLDED if where == "before" else INK
        lows, medians, highs = (np.array(each) for each in zip(*ranges, strict=True))
        axes.vlines(places + offset, lows, highs, color=colour, linewidth=1.4, linestyle=style)
        axes.plot(places + offset, medians, marker, color=colour, markersize=4, label=f"weights {where} it")
    _log_axis(axes, [bound for one in shown for r in (one.before, one.behind) for bound in (r.least, r.most)])
    axes.axhline(1, color=INK, linewidth=0.6, alpha=0.5, zorder=0)
    ticks = range(0, len(shown), -(-len(shown) // TICKS))
    axes.set_xticks(ticks, [str(shown[place].number) for place in ticks])
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set(xlabel="number of the BatchNorm", ylabel="multiplied by")
    _legend(axes)
    return Drawn(figure, text + "Over all: " + ", ".join(widest) + ".")


def _costs(seen: Observations) -> Drawn:
    rows = [
        ("weights", "kB", seen.unfolded.weight_bytes / 1000, seen.folded.weight_bytes / 1000),
        ("operators", "", seen.unfolded.operators, seen.folded.operators),
    ]
    note = "latency was not measured: " + seen.missing["latency"] if "latency" in seen.missing else ""
    if seen.unfolded.latency_ms is not None and seen.folded.latency_ms is not None:
        rows.append(("latency", "ms", seen.unfolded.latency_ms, seen.folded.latency_ms))
        note = (
            f"latency is the median of {seen.rounds} runs of {_counted(seen.timed_rows, 'row')}, taken in turns in "
            "ONNX Runtime on the CPU of this machine while folding"
        )
    text = "; ".join(
        f"{name} {_number(before)} before, {_number(after)} after{f' ({unit})' if unit else ''}"
        for name, unit, before, after in rows
    )
    figure = Figure(figsize=(WIDTH, 0.35 + 0.75 * len(rows)))
    figure.subplots_adjust(left=0.2, right=0.8, top=0.93, bottom=0.03, hspace=0.5)
    for index, (name, unit, before, after) in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, index + 1)
        axes.barh([1, 0], [before, after], color=[UNFOLDED, FOLDED], height=0.8)
        axes.set_xlim(0, max(before, after) or 1)
        for place, number in ((1, before), (0, after)):
            axes.text(
                1.02, place, f"{_number(number)} {unit}".strip(), transform=axes.get_yaxis_transform(), va="center"
            )
        axes.set_yticks([1, 0], ["unfolded", "folded"])
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
        axes.set_title(name, loc="left", pad=2)
    return Drawn(figure, f"{text[0].upper()}{text[1:]}; {note}.")


PICTURES: Sequence[tuple[str, str, Callable[[Observations], Drawn]]] = (
    ("errors", "Distance from float64", _errors),
    ("layers", "Error by layer", _layers),
    ("activations", "Activations before and after each BatchNorm, and as folded", _activations),
    ("stretches", "How far weights were stretched", _stretches),
    ("costs", "Size, operators and latency", _costs),
)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.subplots_adjust(left=0.16, right=0.98, top=0.9, bottom=0.16)
    return figure, figure.add_subplot()


def _legend(axes: Axes) -> None:
    """A legend above the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, borderaxespad=0, borderpad=0.2)


def _log_axis(axes: Axes, values: Iterable[float]) -> None:
    """Make the y axis logarithmic, over whole decades, with few labels."""
    drawn = [value for value in values if value > 0]
    low, high = np.floor(np.log10(min(drawn))), np.ceil(np.log10(max(drawn)))
    axes.set_yscale("log")
    axes.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(round(np.log10(value)))))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _boxes(axes: Axes, spreads: Sequence[Spread]) -> None:
    """Draw boxes side by side: before, after and folded."""
    low, first, median, third, high = (np.array(quantile) for quantile in zip(*spreads, strict=True))
    places, colours = np.arange(len(spreads)), SPREAD_COLOURS[: len(spreads)]
    axes.vlines(places, low, high, color=colours, linewidth=1)
    filled = [(colour, FILLED) for colour in colours]
    axes.bar(places, third - first, 0.5, first, color=filled, edgecolor=colours, linewidth=0.8)
    axes.hlines(median, places - 0.33, places + 0.33, color=colours, linewidth=1.8)


def _medians(one: Activations) -> list[float]:
    return [spread.median for spread in (one.before, one.after, one.folded) if spread is not None]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _number(value: float) -> str:
    """Three significant digits; whole numbers below a million in full."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"


def _power(exponent: int) -> str:
    """A power of ten, short enough for an axis."""
    return f"{10.0**exponent:g}" if -2 <= exponent <= 3 else f"1e{exponent}"
