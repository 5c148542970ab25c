"""A temporal convolutional network (Bai et al., 2018): dilated Conv1d in residual blocks, BatchNorm1d behind each.

The network reads an image as a sequence: columns are time steps, and the rows of a column are its channels.
"""

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class TemporalBlock(nn.Module):
    """Two dilated convolutions with BatchNorm and ReLU, added to the input; the length stays."""

    def __init__(self, in_channels: int, channels: int, kernel: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.layers = nn.Sequential(
            nn.Conv1d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False),
            norm.relu1d(channels),
            nn.Conv1d(channels, channels, kernel, padding=padding, dilation=dilation, bias=False),
            norm.relu1d(channels),
        )
        self.shortcut = nn.Identity() if in_channels == channels else nn.Conv1d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) + self.shortcut(x)
        return out


class TCN(nn.Module):
    """[N, in_channels, rows, L] (or, with `rows` 0, [N, in_channels, L]) to [N, classes]."""

    def __init__(
        self, *, in_channels: int, rows: int, channels: int, depth: int, classes: int, kernel: int, norm: Norm
    ) -> None:
        super().__init__()
        self.rows = rows
        blocks: list[nn.Module] = []
        width = in_channels * rows if rows else in_channels
        for level in range(depth):
            blocks.append(TemporalBlock(width, channels, kernel, 2**level, norm))
            width = channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        sequence = torch.flatten(x, 1, 2) if self.rows else x
        logits: Tensor = self.classifier(self.blocks(sequence).mean(2))
        return logits


def conv1d_tcn(
    *,
    in_channels: int = 1,
    rows: int = 8,
    channels: int = 48,
    depth: int = 3,
    classes: int = 10,
    kernel: int = 3,
    momentum: float = 0.1,
    eps: float = 1e-5,
    placement: str = "before",
) -> TCN:
    """`depth` blocks, each with twice the dilation of the one before it; `kernel` is odd, so that the length stays.

    `rows` is the height of the images, or 0 for sequences [N, in_channels, L]. `placement` puts BatchNorm "before" or
    "after" the activation. Raises `ValueError` for an even `kernel`.
    """
    if kernel % 2 == 0:
        raise ValueError(f"kernel {kernel}: expected an odd number, for the length to stay the same")
    return TCN(
        in_channels=in_channels,
        rows=rows,
        channels=channels,
        depth=depth,
        classes=classes,
        kernel=kernel,
        norm=Norm(momentum, eps, placement),
    )
