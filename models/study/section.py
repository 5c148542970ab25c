"""The part of a study on the page: a figure, its description, tables; and the conventions of all figures.

Blue is without BatchNorm and orange with it, in every picture; the two differ in more than colour.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fold.reports.pictures import FOLDED, UNFOLDED, WIDTH

WITHOUT, WITH, THIRD = UNFOLDED, FOLDED, "#059669"
"""Each at least 3:1 against a white page and a black one."""
COMPACT: dict[str, Any] = {"borderpad": 0.2, "columnspacing": 1.2, "handlelength": 1.5, "handletextpad": 0.5}
"""A legend that fits a phone."""

T = TypeVar("T")


class Numbers(Protocol):
    """The result of a study."""

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON."""


F = TypeVar("F", bound=Numbers)


class Track(Protocol):
    """Iterates over items and shows the progress."""

    def __call__(self, items: Sequence[T], what: str) -> Iterable[T]: ...


def untracked(items: Sequence[T], what: str) -> Iterable[T]:
    """Iterates over the items and shows nothing."""
    return items


@dataclass(frozen=True)
class Table:
    """`rows` are as long as `header`; all text."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """`seen` describes the figure in two or three sentences, with the numbers of this run."""

    figure: Figure
    seen: str
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Study(Generic[F]):
    """`about` says what is computed; `compute(seed, track)` does it, and `show` draws it."""

    name: str
    heading: str
    about: str
    compute: Callable[[int, Track], F]
    show: Callable[[F], Section]


def tall(height: float) -> Figure:
    """An empty figure as wide as a phone, `height` inches of 72 units tall."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def logarithmic(axes: Axes, which: Literal["x", "y", "both"]) -> None:
    """Plain numbers at whole decades. Text in a picture stays text, so exponents cannot be raised."""
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which in (name, "both"):
            axes.set(**{f"{name}scale": "log"})
            axis.set_major_locator(LogLocator(numticks=6))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def legend_above(axes: Axes, *, columns: int = 2) -> None:
    """Above the axes, where nothing is drawn."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0, **COMPACT)
