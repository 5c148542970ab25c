"""What became of every BatchNorm: folded into what, or kept and why."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Folded:
    """A BatchNorm that is gone. `into` names the initializers that took it up."""

    name: str
    node: str
    channels: int
    into: tuple[str, ...]
    warning: str | None = None


@dataclass(frozen=True)
class Kept:
    """A BatchNorm that stays, the reason in one sentence, and the node that is the culprit."""

    name: str
    node: str
    channels: int
    reason: str
    culprit: str


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
            "kept": [asdict(entry) for entry in self.kept],
            "branches_merged": self.branches_merged,
            "flushed": self.flushed,
            "seconds": round(self.seconds, 4),
        }
