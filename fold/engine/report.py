"""The report of a fold: each BatchNorm is folded into some weights, or kept for a reason."""

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fold.engine.reasons import Reason, reason_json
from fold.graph import dims

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Folded:
    """A BatchNorm that was removed. `into` names the initializers that absorbed it."""

    name: str
    node: str
    channels: int
    into: tuple[str, ...]
    warning: str | None = None


@dataclass(frozen=True)
class TensorSize:
    """The dimensions of a tensor and the bytes of one element. A free dimension is its name, or None."""

    dims: tuple[int | str | None, ...] | None
    itemsize: int

    @classmethod
    def of(cls, value: "ir.Value") -> "TensorSize":
        sizes = dims(value)
        return cls(None if sizes is None else tuple(sizes), 4 if value.dtype is None else int(value.dtype.itemsize))

    def bytes(self, **sizes: int) -> int | None:
        """Bytes of the tensor with these sizes of its named dimensions. A first dimension without a size is 1; None
        where another size is not known."""
        known = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in self.dims or (None, None)]
        if not isinstance(known[0], int):
            known[0] = 1
        numbers = [size for size in known if isinstance(size, int)]
        return math.prod(numbers) * self.itemsize if len(numbers) == len(known) else None


@dataclass(frozen=True)
class Kept:
    """A BatchNorm that stays, and why.

    It costs `passes` over its tensor, each of which reads and writes all of it: one, or one for each operator where the
    BatchNorm is written out as products and sums.
    """

    name: str
    node: str
    channels: int
    why: Reason
    tensor: TensorSize = field(default=TensorSize(None, 4), compare=False)
    passes: int = 1

    @property
    def reason(self) -> str:
        """The reason as one sentence."""
        return str(self.why)

    @property
    def code(self) -> str:
        """The kind of reason, as docs/folding.md lists them."""
        return str(self.why.code)

    @property
    def culprit(self) -> str:
        """The node, or the graph's input or output, that is the reason."""
        return self.why.culprit

    def bytes_moved(self, **sizes: int) -> int | None:
        """Bytes that these passes read and write, for given sizes of the graph's named dimensions (`batch=8`), or for
        one row of the batch. None where the tensor's sizes are not known."""
        size = self.tensor.bytes(**sizes)
        return None if size is None else 2 * size * self.passes

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a kept BatchNorm (docs/formats.md)."""
        return {
            "name": self.name,
            "node": self.node,
            "channels": self.channels,
            **reason_json(self.why),
            "passes": self.passes,
            "bytes_per_row": self.bytes_moved(),
        }


@dataclass(frozen=True)
class ScalingOutcome:
    """Which halves of an input's scaling (`--normalize`) were folded. It is no BatchNorm.

    `into` names the initializers that absorbed it; `shift` is `none` where the mean is 0. `why` is the reason where a
    half is kept.
    """

    input: str
    scale: Literal["folded", "kept"]
    into: tuple[str, ...]
    shift: Literal["folded", "kept", "none"]
    why: Reason | None = None

    @property
    def reason(self) -> str | None:
        """The reason as one sentence."""
        return None if self.why is None else str(self.why)

    @property
    def culprit(self) -> str | None:
        """The node, or the graph's input or output, that is the reason."""
        return None if self.why is None else self.why.culprit

    @property
    def message(self) -> str:
        """All of it in one line."""
        outcomes = {"scale": self.scale, "shift": self.shift}
        folded = [half for half, outcome in outcomes.items() if outcome == "folded"]
        kept = [half for half, outcome in outcomes.items() if outcome == "kept"]
        into = f" folded into {', '.join(self.into)}" if self.into else " folded, and nothing needed to change"
        parts = [f"{' and '.join(folded)}{into}"] if folded else []
        parts += [f"{' and '.join(kept)} kept: {self.why}"] if kept else []
        return f"input {self.input} takes bytes; input scaling: {'; '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `normalization` (docs/formats.md)."""
        outcome = {"input": self.input, "scale": self.scale, "into": self.into, "shift": self.shift}
        return {**outcome, **reason_json(self.why)}


@dataclass(frozen=True)
class Affines:
    """How many products and sums with constants of one kind (laws.chains.Kind) were folded and kept. A chain of them
    counts once. They are no BatchNorms."""

    kind: str
    folded: int
    kept: int

    NAMES: ClassVar[dict[str, str]] = {
        "layernorm": "affine of LayerNorm",
        "groupnorm": "affine of GroupNorm",
        "instancenorm": "affine of InstanceNorm",
        "layer_scale": "layer scale",
        "scale": "scale by channel",
        "bias": "bias by channel",
        "scalar": "scalar product or sum",
    }

    def __str__(self) -> str:
        return f"{self.NAMES[self.kind]}: {self.folded} folded, {self.kept} kept"


@dataclass(frozen=True)
class FoldReport:
    """Every BatchNorm of a model is in `folded` or in `kept`, in the order of the graph.

    `flushed` counts folded weights below the smallest normal number of their type, which were set to zero;
    `branches_merged` counts parallel branches that were merged; `seconds` is the time that folding took.
    `normalization` is None where the graph scales no input. `affines` counts what is no BatchNorm.
    """

    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    flushed: int = 0
    branches_merged: int = 0
    seconds: float = field(default=0.0, compare=False)
    normalization: ScalingOutcome | None = None
    affines: tuple[Affines, ...] = ()

    @property
    def batchnorms(self) -> int:
        return len(self.folded) + len(self.kept)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a fold: `batchnorms` is their number, `folded` and `kept` list them."""
        return {
            "batchnorms": self.batchnorms,
            "folded": [asdict(entry) for entry in self.folded],
            "kept": [entry.to_dict() for entry in self.kept],
            "normalization": None if self.normalization is None else self.normalization.to_dict(),
            "affines": [asdict(entry) for entry in self.affines],
            "branches_merged": self.branches_merged,
            "flushed": self.flushed,
            "seconds": round(self.seconds, 4),
        }
