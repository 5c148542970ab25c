"""How the networks of this package make their BatchNorms: with one momentum and one eps, on one side of the ReLU."""

from dataclasses import dataclass

from torch import nn

PLACEMENTS = ("before", "after")


@dataclass(frozen=True)
class Norm:
    """`momentum` and `eps` as PyTorch's BatchNorm takes them; `placement` says on which side of the ReLU it stands.

    Raises `ValueError` for a placement that is neither "before" nor "after".
    """

    momentum: float = 0.1
    eps: float = 1e-5
    placement: str = "before"

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement {self.placement!r}: expected 'before' or 'after' (the activation)")

    def bn1d(self, channels: int) -> nn.BatchNorm1d:
        """For [N, channels] or [N, channels, L]."""
        return nn.BatchNorm1d(channels, eps=self.eps, momentum=self.momentum)

    def bn2d(self, channels: int) -> nn.BatchNorm2d:
        """For [N, channels, H, W]."""
        return nn.BatchNorm2d(channels, eps=self.eps, momentum=self.momentum)

    def relu1d(self, channels: int) -> nn.Sequential:
        """BatchNorm and ReLU, in the order of `placement`, for [N, channels] or [N, channels, L]."""
        return self._with_relu(self.bn1d(channels))

    def relu2d(self, channels: int) -> nn.Sequential:
        """BatchNorm and ReLU, in the order of `placement`, for [N, channels, H, W]."""
        return self._with_relu(self.bn2d(channels))

    def _with_relu(self, bn: nn.Module) -> nn.Sequential:
        return nn.Sequential(bn, nn.ReLU()) if self.placement == "before" else nn.Sequential(nn.ReLU(), bn)
