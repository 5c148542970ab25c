"""The command: `python -m models.study --out DIR`."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fold.errors import BnfoldError
from models.study import (
    batch_statistics,
    cost_surface,
    depth,
    formulas,
    moving_average,
    page,
    saturation,
    training,
)
from models.study.section import Study, Track

T = TypeVar("T")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

STUDIES: tuple[Study[Any], ...] = (
    cost_surface.STUDY,
    saturation.STUDY,
    depth.STUDY,
    batch_statistics.STUDY,
    moving_average.STUDY,
    training.STUDY,
    formulas.STUDY,
)
NAMES = tuple(study.name for study in STUDIES)


def study(out: Path, only: Sequence[str], seed: int) -> Path:
    """Run the studies named in `only`, or all, and write them to `out`. Returns the path of the page.

    Raises `BnfoldError` for an unknown name, and for a folder that cannot be written.
    """
    for name in only:
        if name not in NAMES:
            raise BnfoldError(f"--only {name}: there is no such study; expected one of {', '.join(NAMES)}")
    page.prepare(out)
    torch.set_num_threads(1)  # the networks are too small for two, and another split of sums changes the numbers
    entries = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for one in STUDIES:
            if not only or one.name in only:
                entries.append(page.entry(one, one.compute(seed, _tracked(progress, one.name))))
    return page.write(out, entries, seed=seed)


def _tracked(progress: Progress, name: str) -> Track:
    def track(items: Sequence[T], what: str) -> Iterable[T]:
        return progress.track(items, description=f"{name}: {what}")

    return track


@app.command()
def _main(
    out: Annotated[Path, typer.Option(help="The folder for the page, the pictures and their numbers.")],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"One of {', '.join(NAMES)}; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
) -> None:
    """Compute and draw what BatchNorm does."""
    try:
        print(f"written to {study(out, only or [], seed)}")
    except BnfoldError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
