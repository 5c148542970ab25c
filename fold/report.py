"""What became of every BatchNorm: folded into what, or kept and why; for programs, a terminal and a browser."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fold.graph import dims

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.table import Table

    from fold.artifact import Manifest
    from fold.verify import Verdict


@dataclass(frozen=True)
class Folded:
    """A BatchNorm that is gone. `into` names the initializers that took it up."""

    name: str
    node: str
    channels: int
    into: tuple[str, ...]
    warning: str | None = None


@dataclass(frozen=True)
class TensorSize:
    """The dimensions of a tensor, where they are not known their names or None, and the bytes of one element."""

    dims: tuple[int | str | None, ...] | None
    itemsize: int

    @classmethod
    def of(cls, value: "ir.Value") -> "TensorSize":
        sizes = dims(value)
        return cls(None if sizes is None else tuple(sizes), 4 if value.dtype is None else int(value.dtype.itemsize))

    def bytes(self, **sizes: int) -> int | None:
        """Bytes of the tensor with these sizes for its named dimensions; a first dimension without a size is 1. None
        where others are not known."""
        known = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in self.dims or (None, None)]
        if not isinstance(known[0], int):
            known[0] = 1
        numbers = [size for size in known if isinstance(size, int)]
        return math.prod(numbers) * self.itemsize if len(numbers) == len(known) else None


@dataclass(frozen=True)
class Kept:
    """A BatchNorm that stays, the reason in one sentence, and the node that is the culprit.

    It still costs one pass over its tensor, which is read and written.
    """

    name: str
    node: str
    channels: int
    reason: str
    culprit: str
    tensor: TensorSize = field(default=TensorSize(None, 4), compare=False)

    def bytes_moved(self, **sizes: int) -> int | None:
        """Bytes read and written in that pass, for given sizes of the graph's named dimensions (`batch=8`); one row of
        the batch by default. None where the tensor's sizes are not known."""
        size = self.tensor.bytes(**sizes)
        return None if size is None else 2 * size

    def to_dict(self) -> dict[str, Any]:
        content = {key: value for key, value in asdict(self).items() if key != "tensor"}
        return {**content, "passes": 1, "bytes_per_row": self.bytes_moved()}


@dataclass(frozen=True)
class FoldReport:
    """Every BatchNorm of a model is in `folded` or in `kept`, in the order of the graph.

    `flushed` counts folded weights below the smallest normal number of their type, which were set to zero;
    `branches_merged` counts parallel branches that became one convolution; `seconds` is the time that folding took.
    """

    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    flushed: int = 0
    branches_merged: int = 0
    seconds: float = field(default=0.0, compare=False)

    @property
    def batchnorms(self) -> int:
        return len(self.folded) + len(self.kept)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a fold: `batchnorms` is their number, `folded` and `kept` list them."""
        return {
            "batchnorms": self.batchnorms,
            "folded": [asdict(entry) for entry in self.folded],
            "kept": [entry.to_dict() for entry in self.kept],
            "branches_merged": self.branches_merged,
            "flushed": self.flushed,
            "seconds": round(self.seconds, 4),
        }


def fold_table(report: FoldReport) -> "Table":
    """A row for each BatchNorm, kept ones first: they are what a user must see."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("BatchNorm", "Channels", "", "Into, or why not", box=None, pad_edge=False, header_style="bold")
    for kept in report.kept:
        table.add_row(escape(kept.name), str(kept.channels), "[yellow]kept[/]", escape(kept.reason))
    for folded in report.folded:
        what = escape(", ".join(folded.into)) or "nothing needed to change"
        warning = f" [yellow]({folded.warning})[/]" if folded.warning else ""
        table.add_row(escape(folded.name), str(folded.channels), "[green]folded[/]", what + warning)
    return table


def verdict_table(verdict: "Verdict") -> "Table":
    """A row for each output: how far the unfolded and the folded model are from float64."""
    from rich.table import Table  # noqa: PLC0415

    table = Table("Output", "Unfolded", "Folded", "Limit", "", box=None, pad_edge=False, header_style="bold")
    for output in verdict.outputs:
        judged = "[green]equivalent[/]" if output.equivalent else "[red]NOT equivalent[/]"
        numbers = (f"{error:.3g}" for error in (output.unfolded_error, output.folded_error, output.limit))
        table.add_row(output.name, *numbers, judged)
    return table


def write_html(path: Path, manifest: "Manifest", report: FoldReport) -> None:
    """The same for a browser, in one file that needs no network."""
    from jinja2 import Environment, PackageLoader, select_autoescape  # noqa: PLC0415

    environment = Environment(loader=PackageLoader("fold"), autoescape=select_autoescape())
    page = environment.get_template("report.html").render(manifest=manifest, report=report)
    path.write_text(page, encoding="utf-8")
