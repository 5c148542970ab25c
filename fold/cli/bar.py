"""The bars that commands show while they work: on a terminal only, so that pipes and files get none of them."""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fold.cli.options import console
from fold.terminal import escape

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def bar_of(*columns: "ProgressColumn", refreshes_per_second: float = 10) -> "Progress":
    """A bar of these columns, which disappears when it is done."""
    from rich.progress import Progress  # noqa: PLC0415

    return Progress(
        *columns,
        console=console,
        refresh_per_second=refreshes_per_second,
        transient=True,
        disable=not (console.is_terminal and sys.stderr.isatty()),  # FORCE_COLOR makes a pipe a terminal for rich
    )


class StepBar:
    """Shows the current step and its seconds until the block ends. How long a step takes is not known."""

    def __init__(self, refreshes_per_second: float = 10) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}")
        self._bar = bar_of(*columns, refreshes_per_second=refreshes_per_second)
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def announce(self, step: str, notes: Sequence[str] = ()) -> None:
        """The next step begins. Notes stand below it."""
        self._bar.reset(self._task, total=None, description="\n".join(map(escape, (step, *notes))))

    def advance(self, done: int, steps: int, text: str) -> None:
        """So much is done of a step whose length is known."""
        self._bar.update(self._task, completed=done, total=steps, description=escape(text))
