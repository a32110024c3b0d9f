"""RetinaFace (Deng et al., CVPR 2020): the critic, the adversary and the face detector.

Module names follow the released PyTorch weights, so that their files load strictly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN_RGB = (104.0, 117.0, 123.0)
"""Subtracted from R, G, B in this order: what the released detector expects."""

CHANNELS = 64
"""Width of the feature pyramid and of the context modules."""

SLOPE = 0.1
"""LeakyReLU slope throughout."""


class Predictions(NamedTuple):
    """Raw outputs for A anchors, in the order of `models.anchors.anchor_grid`."""

    offsets: Tensor  # [B, A, 4], encoded boxes
    logits: Tensor  # [B, A, 2], background and face
    landmarks: Tensor | None = None  # [B, A, 10], encoded x y of five points


def _conv_bn(
    channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, activated: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    if activated:
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


def _conv_depthwise(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(SLOPE),
    )


class MobileNet025(nn.Module):
    """MobileNetV1 at a quarter of its width; features at strides 8, 16, 32."""

    channels = (64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            _conv_bn(3, 8, stride=2),
            _conv_depthwise(8, 16, 1),
            _conv_depthwise(16, 32, 2),
            _conv_depthwise(32, 32, 1),
            _conv_depthwise(32, 64, 2),
            _conv_depthwise(64, 64, 1),
        )
        self.stage2 = nn.Sequential(
            _conv_depthwise(64, 128, 2), *(_conv_depthwise(128, 128, 1) for _ in range(5))
        )
        self.stage3 = nn.Sequential(_conv_depthwise(128, 256, 2), _conv_depthwise(256, 256, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [B, 64, H/8, W/8], [B, 128, H/16, W/16], [B, 256, H/32, W/32]."""
        c3 = self.stage1(x)
        c4 = self.stage2(c3)
        return [c3, c4, self.stage3(c4)]


class FeaturePyramid(nn.Module):
    """Brings the backbone's three scales to one width and adds coarse to fine."""

    def __init__(self, channels_in: tuple[int, int, int]) -> None:
        super().__init__()
        self.output1 = _conv_bn(channels_in[0], CHANNELS, kernel=1)
        self.output2 = _conv_bn(channels_in[1], CHANNELS, kernel=1)
        self.output3 = _conv_bn(channels_in[2], CHANNELS, kernel=1)
        self.merge1 = _conv_bn(CHANNELS, CHANNELS)
        self.merge2 = _conv_bn(CHANNELS, CHANNELS)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Three [B, C_i, H_i, W_i] -> three [B, 64, H_i, W_i]."""
        p3, p4, p5 = (
            output(feature)
            for output, feature in zip(
                (self.output1, self.output2, self.output3), features, strict=True
            )
        )
        p4 = self.merge2(p4 + F.interpolate(p5, size=p4.shape[2:], mode="nearest"))
        p3 = self.merge1(p3 + F.interpolate(p4, size=p3.shape[2:], mode="nearest"))
        return [p3, p4, p5]


class ContextModule(nn.Module):
    """SSH context: receptive fields of 3, 5 and 7, joined."""

    def __init__(self) -> None:
        super().__init__()
        quarter = CHANNELS // 4
        self.conv3X3 = _conv_bn(CHANNELS, CHANNELS // 2, activated=False)
        self.conv5X5_1 = _conv_bn(CHANNELS, quarter)
        self.conv5X5_2 = _conv_bn(quarter, quarter, activated=False)
        self.conv7X7_2 = _conv_bn(quarter, quarter)
        self.conv7x7_3 = _conv_bn(quarter, quarter, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 64, H, W] -> [B, 64, H, W]."""
        shared = self.conv5X5_1(x)
        wide = self.conv7x7_3(self.conv7X7_2(shared))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(shared), wide], dim=1))


class Head(nn.Module):
    """1x1 convolution to `values` numbers for each of a cell's two anchors."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(CHANNELS, 2 * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 64, H, W] -> [B, H * W * 2, values]."""
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.values)


class RetinaFace(nn.Module):
    """Single-stage face detector with two anchors a cell at strides 8, 16 and 32.

    The landmark head exists for the weight files' sake and is frozen: the method has no
    landmark term, and the training labels have no landmarks.
    """

    def __init__(self, backbone: str = "mobilenet0.25") -> None:
        super().__init__()
        if backbone != "mobilenet0.25":
            raise ValueError(f"unknown critic backbone '{backbone}'; available: mobilenet0.25")
        self.body = MobileNet025()
        self.fpn = FeaturePyramid(self.body.channels)
        self.ssh1 = ContextModule()
        self.ssh2 = ContextModule()
        self.ssh3 = ContextModule()
        self.ClassHead = nn.ModuleList(Head(2) for _ in range(3))
        self.BboxHead = nn.ModuleList(Head(4) for _ in range(3))
        self.LandmarkHead = nn.ModuleList(Head(10) for _ in range(3))
        self.LandmarkHead.requires_grad_(False)

    def forward(self, images: Tensor, landmarks: bool = False) -> Predictions:
        """Predict at every anchor; `images`: [B, 3, H, W] RGB, 0-255, mean not subtracted."""
        x = images - images.new_tensor(MEAN_RGB).view(1, 3, 1, 1)
        pyramid = self.fpn(self.body(x))
        contexts = [
            ssh(p) for ssh, p in zip((self.ssh1, self.ssh2, self.ssh3), pyramid, strict=True)
        ]

        def joined(heads: nn.ModuleList) -> Tensor:
            return torch.cat([h(c) for h, c in zip(heads, contexts, strict=True)], dim=1)

        return Predictions(
            offsets=joined(self.BboxHead),
            logits=joined(self.ClassHead),
            landmarks=joined(self.LandmarkHead) if landmarks else None,
        )
