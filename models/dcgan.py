"""The generator of DCGAN (Radford et al., 2016): from a latent vector to an image, by ConvTranspose and BatchNorm.

The first ConvTranspose spreads a single position over 4×4. The last has no BatchNorm; Tanh follows it.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.batchnorm import Norm


class DCGAN(nn.Module):
    """[N, latent] to [N, out_channels, S, S] in (-1, 1), with S = 4 · 2 to the power of the levels."""

    def __init__(self, *, latent: int, channels: Sequence[int], out_channels: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = latent
        for level, out_width in enumerate(channels):
            upsample = (
                nn.ConvTranspose2d(width, out_width, 4, bias=False)
                if level == 0
                else nn.ConvTranspose2d(width, out_width, 4, stride=2, padding=1, bias=False)
            )
            layers += [upsample, norm.relu2d(out_width)]
            width = out_width
        layers += [nn.ConvTranspose2d(width, out_channels, 4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.layers(x[:, :, None, None])
        return image


def dcgan(
    *,
    latent: int = 7,
    channels: Sequence[int] = (12, 6),
    out_channels: int = 1,
    momentum: float = 0.1,
    eps: float = 1e-5,
    placement: str = "before",
) -> DCGAN:
    """One level for each entry of `channels`, with twice the resolution of the one before, the first with 4×4.

    `placement` puts BatchNorm "before" or "after" the activation.
    """
    return DCGAN(latent=latent, channels=channels, out_channels=out_channels, norm=Norm(momentum, eps, placement))
