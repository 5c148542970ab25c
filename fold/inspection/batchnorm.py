"""The entry of one BatchNorm in an inspection."""

from dataclasses import asdict, dataclass
from typing import Any

from fold.engine import Reason, reason_json
from fold.inspection.folded_weights import HalfPrecision
from fold.inspection.placement import Placement
from fold.inspection.statistics import Span, Statistics


@dataclass(frozen=True)
class BatchNorm:
    """One BatchNorm. `into` names the initializers that would absorb it; where it would be kept, `into` is None and
    `why` is the reason.

    `stretch` is the range of factors by which single weights in `into` would be multiplied, with everything that is
    folded into them. `float16` counts the effects of float16 on the numbers of `into`, or on the parameters of a
    BatchNorm that would be kept.
    """

    name: str
    node: str
    channels: int
    placement: Placement
    statistics: Statistics
    into: tuple[str, ...] | None
    why: Reason | None
    stretch: Span | None
    float16: HalfPrecision | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of one BatchNorm (docs/formats.md)."""
        return {
            "name": self.name,
            "node": self.node,
            "channels": self.channels,
            "placement": {"text": str(self.placement), **self.placement.to_dict()},
            **self.statistics.to_dict(),
            "folded": self.into is not None,
            "into": None if self.into is None else list(self.into),
            **reason_json(self.why),
            "stretch": None if self.stretch is None else self.stretch._asdict(),
            "float16": None if self.float16 is None else asdict(self.float16),
        }
