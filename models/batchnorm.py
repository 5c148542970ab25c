"""Makes the BatchNorms of this package: one momentum and one eps for a network, before or after the ReLU."""

from dataclasses import dataclass

from torch import nn

PLACEMENTS = ("before", "after")


@dataclass(frozen=True)
class Norm:
    """`momentum` and `eps` as PyTorch's BatchNorm takes them; `placement` is "before" or "after" the ReLU.

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

    def bn3d(self, channels: int) -> nn.BatchNorm3d:
        """For [N, channels, D, H, W]."""
        return nn.BatchNorm3d(channels, eps=self.eps, momentum=self.momentum)

    def conv_bn2d(
        self, in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> nn.Sequential:
        """A convolution without a bias, and BatchNorm; an odd `kernel` keeps H and W (divided by `stride`)."""
        conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, self.bn2d(channels))

    def relu1d(self, channels: int) -> nn.Sequential:
        """BatchNorm and ReLU, in the order of `placement`, for [N, channels] or [N, channels, L]."""
        return self._with_relu(self.bn1d(channels))

    def relu2d(self, channels: int) -> nn.Sequential:
        """BatchNorm and ReLU, in the order of `placement`, for [N, channels, H, W]."""
        return self._with_relu(self.bn2d(channels))

    def _with_relu(self, bn: nn.Module) -> nn.Sequential:
        return nn.Sequential(bn, nn.ReLU()) if self.placement == "before" else nn.Sequential(nn.ReLU(), bn)
