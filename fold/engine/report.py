"""What became of every BatchNorm: folded into what, or kept and why, for programs and a terminal."""

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fold.graph import dims

if TYPE_CHECKING:
    import onnx_ir as ir


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

    It still costs `passes` over its tensor, each of which reads and writes it: one, or where it is written out with
    constants, one for each operator.
    """

    name: str
    node: str
    channels: int
    reason: str
    culprit: str
    tensor: TensorSize = field(default=TensorSize(None, 4), compare=False)
    passes: int = 1

    def bytes_moved(self, **sizes: int) -> int | None:
        """Bytes read and written in these passes, for given sizes of the graph's named dimensions (`batch=8`); one row
        of the batch by default. None where the tensor's sizes are not known."""
        size = self.tensor.bytes(**sizes)
        return None if size is None else 2 * size * self.passes

    def to_dict(self) -> dict[str, Any]:
        content = {key: value for key, value in asdict(self).items() if key != "tensor"}
        return {**content, "bytes_per_row": self.bytes_moved()}


@dataclass(frozen=True)
class ScalingOutcome:
    """What became of the standardisation of an input, which is no BatchNorm. `into` names the initializers that took
    it up; `shift` is `none` where the mean is 0. `reason` and `culprit` tell why something is kept."""

    input: str
    scale: Literal["folded", "kept"]
    into: tuple[str, ...]
    shift: Literal["folded", "kept", "none"]
    reason: str | None = None
    culprit: str | None = None

    @property
    def message(self) -> str:
        """All of it in one line."""
        folded = {"scale": self.scale, "shift": self.shift}
        gone = [part for part, what in folded.items() if what == "folded"]
        stays = [part for part, what in folded.items() if what == "kept"]
        into = f" folded into {', '.join(self.into)}" if self.into else " folded, and nothing needed to change"
        said = [f"{' and '.join(gone)}{into}"] if gone else []
        said += [f"{' and '.join(stays)} kept: {self.reason}"] if stays else []
        return f"input {self.input} takes bytes; normalisation: {'; '.join(said)}"


@dataclass(frozen=True)
class FoldReport:
    """Every BatchNorm of a model is in `folded` or in `kept`, in the order of the graph.

    `flushed` counts folded weights below the smallest normal number of their type, which were set to zero;
    `branches_merged` counts parallel branches that became one convolution; `seconds` is the time that folding took.
    `normalization` is None where no input is normalised in the graph.
    """

    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    flushed: int = 0
    branches_merged: int = 0
    seconds: float = field(default=0.0, compare=False)
    normalization: ScalingOutcome | None = None

    @property
    def batchnorms(self) -> int:
        return len(self.folded) + len(self.kept)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a fold: `batchnorms` is their number, `folded` and `kept` list them."""
        return {
            "batchnorms": self.batchnorms,
            "folded": [asdict(entry) for entry in self.folded],
            "kept": [entry.to_dict() for entry in self.kept],
            "normalization": None if self.normalization is None else asdict(self.normalization),
            "branches_merged": self.branches_merged,
            "flushed": self.flushed,
            "seconds": round(self.seconds, 4),
        }
