"""The blur generator: a U-Net that redraws a Gaussian-blurred face (paper section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE = 32
"""Five 2x2 poolings: heights and widths must be multiples of this."""


class DownBlock(nn.Module):
    """Two 3x3 convolutions, each with LeakyReLU, then 2x2 max-pooling."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        # Positions 0 and 2 carry the weights: the naming of released weights.
        self.module = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
            nn.MaxPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides: [B, channels_in, H, W] -> [B, channels_out, H/2, W/2]."""
        return self.module(x)


class UpBlock(nn.Module):
    """3x3 convolution to `4 * shuffled` channels, PixelShuffle(2), 3x3 convolution.

    `activated=False` leaves the output linear, which the last block needs.
    """

    def __init__(
        self, channels_in: int, shuffled: int, channels_out: int, activated: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels_in, 4 * shuffled, 3, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
            nn.PixelShuffle(2),
            nn.Conv2d(shuffled, channels_out, 3, padding=1),
        ]
        if activated:
            layers.append(nn.LeakyReLU(0.01, inplace=True))
        self.module = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides: [B, channels_in, H, W] -> [B, channels_out, 2H, 2W]."""
        return self.module(x)


class BlurGenerator(nn.Module):
    """U-Net of five levels, 12,653,187 parameters.

    The skips are the *pooled* encoder outputs. The two deepest decoder outputs add the
    encoder feature of their scale, the next two are concatenated with it, and the image
    itself is added before the final tanh.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down0 = DownBlock(4, 32)
        self.down1 = DownBlock(32, 64)
        self.down2 = DownBlock(64, 128)
        self.down3 = DownBlock(128, 256)
        self.down4 = DownBlock(256, 512)
        self.up4 = UpBlock(512, 256, 256)
        self.up3 = UpBlock(256, 128, 128)
        self.up2 = UpBlock(128, 64, 64)
        self.up1 = UpBlock(128, 96, 96)
        self.up0 = UpBlock(128, 96, 3, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        """Redraw a frame.

        `x`: [B, 4, H, W], the blurred image as 0-255 / 127.5 - 1 and the face mask (0 or
        1); H and W multiples of 32, else `ValueError`. Returns [B, 3, H, W] in [-1, 1].
        """
        if x.shape[1] != 4 or x.shape[2] % STRIDE or x.shape[3] % STRIDE:
            raise ValueError(
                f"generator input is [B, 4, H, W] with H and W multiples of {STRIDE}, "
                f"not {list(x.shape)}"
            )
        down0 = self.down0(x)  # [B, 32, H/2, W/2]
        down1 = self.down1(down0)  # [B, 64, H/4, W/4]
        down2 = self.down2(down1)  # [B, 128, H/8, W/8]
        down3 = self.down3(down2)  # [B, 256, H/16, W/16]
        down4 = self.down4(down3)  # [B, 512, H/32, W/32]
        up4 = self.up4(down4) + down3
        up3 = self.up3(up4) + down2
        up2 = torch.cat([self.up2(up3), down1], dim=1)
        up1 = torch.cat([self.up1(up2), down0], dim=1)
        return torch.tanh(self.up0(up1) + x[:, :3])
