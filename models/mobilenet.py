"""A small MobileNetV2 (Sandler et al., 2018): depthwise convolutions, inverted residuals, ReLU6."""

from collections.abc import Sequence

from torch import Tensor, nn

from models.batchnorm import Norm


def conv_bn_relu6(
    in_channels: int, channels: int, kernel: int, norm: Norm, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution that keeps H and W (divided by `stride`), BatchNorm, ReLU6."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm.bn2d(channels), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; added to its input if the shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int, norm: Norm) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_relu6(in_channels, hidden, 1, norm))
        layers += [
            conv_bn_relu6(hidden, hidden, 3, norm, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            norm.bn2d(channels),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out + x if self.residual else out


class MobileNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(
        self, *, in_channels: int, channels: Sequence[int], depth: int, classes: int, expansion: int, norm: Norm
    ) -> None:
        super().__init__()
        width = channels[0]
        layers: list[nn.Module] = [conv_bn_relu6(in_channels, width, 3, norm)]
        for stage, out_width in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                # The first block does not expand, as in the original.
                layers.append(InvertedResidual(width, out_width, stride, expansion if len(layers) > 1 else 1, norm))
                width = out_width
        layers.append(conv_bn_relu6(width, 2 * width, 1, norm))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def mobilenet(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (16, 24, 40),
    depth: int = 2,
    classes: int = 10,
    expansion: int = 4,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> MobileNet:
    """One stage for each entry of `channels`, `depth` inverted residuals in each, `expansion` times as wide inside."""
    return MobileNet(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        classes=classes,
        expansion=expansion,
        norm=Norm(momentum, eps),
    )
