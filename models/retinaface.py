"""RetinaFace (Deng et al., CVPR 2020): the critic, the adversary and the face detector.

Module names follow the released PyTorch weights, so that their files load strictly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50

MEAN_RGB = (104.0, 117.0, 123.0)
"""Subtracted from R, G, B in this order: what the released detector expects."""

SLOPE = 0.1
"""LeakyReLU slope of MobileNet and of pyramids with at most `LEAKY_CHANNELS` channels."""

LEAKY_CHANNELS = 64
"""Wider pyramids have slope 0, as the released ResNet-50 detectors were trained."""


class Predictions(NamedTuple):
    """Raw outputs for A anchors, in the order of `models.anchors.anchor_grid`."""

    offsets: Tensor  # [B, A, 4], encoded boxes
    logits: Tensor  # [B, A, 2], background and face
    landmarks: Tensor | None = None  # [B, A, 10], encoded x y of five points


def _conv_bn(
    channels_in: int, channels_out: int, slope: float | None, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope, inplace=True))
    return nn.Sequential(*layers)


def _conv_depthwise(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


class MobileNet025(nn.Module):
    """MobileNetV1 at a quarter of its width; features at strides 8, 16, 32."""

    channels = (64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            _conv_bn(3, 8, SLOPE, stride=2),
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


class ResNet50(nn.Module):
    """torchvision's ResNet-50 without its classifier; features at strides 8, 16, 32."""

    channels = (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        network = resnet50(weights=None)
        self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool = network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [B, 512, H/8, W/8], [B, 1024, H/16, W/16], [B, 2048, H/32, W/32]."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # [B, 64, H/4, W/4]
        c3 = self.layer2(self.layer1(stem))
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]


class FeaturePyramid(nn.Module):
    """Brings the backbone's three scales to one width and adds coarse to fine."""

    def __init__(self, channels_in: tuple[int, int, int], channels: int, slope: float) -> None:
        super().__init__()
        self.output1 = _conv_bn(channels_in[0], channels, slope, kernel=1)
        self.output2 = _conv_bn(channels_in[1], channels, slope, kernel=1)
        self.output3 = _conv_bn(channels_in[2], channels, slope, kernel=1)
        self.merge1 = _conv_bn(channels, channels, slope)
        self.merge2 = _conv_bn(channels, channels, slope)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Three [B, C_i, H_i, W_i] -> three [B, channels, H_i, W_i]."""
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

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        quarter = channels // 4
        self.conv3X3 = _conv_bn(channels, channels // 2, None)
        self.conv5X5_1 = _conv_bn(channels, quarter, slope)
        self.conv5X5_2 = _conv_bn(quarter, quarter, None)
        self.conv7X7_2 = _conv_bn(quarter, quarter, slope)
        self.conv7x7_3 = _conv_bn(quarter, quarter, None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, channels, H, W]."""
        shared = self.conv5X5_1(x)
        wide = self.conv7x7_3(self.conv7X7_2(shared))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(shared), wide], dim=1))


class Head(nn.Module):
    """1x1 convolution to `values` numbers for each of a cell's two anchors."""

    def __init__(self, channels: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(channels, 2 * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, H * W * 2, values]."""
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.values)


BACKBONES: dict[str, type[MobileNet025] | type[ResNet50]] = {
    "mobilenet0.25": MobileNet025,
    "resnet50": ResNet50,
}


class RetinaFace(nn.Module):
    """Single-stage face detector with two anchors a cell at strides 8, 16 and 32.

    `channels` is the width of the feature pyramid and of the context modules: 64 here, 256
    in most released ResNet-50 detectors. Raises `ValueError` for an unknown backbone or a
    width that is no positive multiple of 4.

    The landmark head exists for the weight files' sake and is frozen: the method has no
    landmark term, and the training labels have no landmarks.
    """

    mean: Tensor  # [3, 1, 1], of R, G and B

    def __init__(self, backbone: str = "mobilenet0.25", channels: int = 64) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            available = ", ".join(BACKBONES)
            raise ValueError(f"unknown critic backbone '{backbone}'; available: {available}")
        if channels < 4 or channels % 4:
            raise ValueError(f"the channels must be a positive multiple of 4, not {channels}")
        slope = SLOPE if channels <= LEAKY_CHANNELS else 0.0
        self.body = BACKBONES[backbone]()
        self.fpn = FeaturePyramid(self.body.channels, channels, slope)
        self.ssh1 = ContextModule(channels, slope)
        self.ssh2 = ContextModule(channels, slope)
        self.ssh3 = ContextModule(channels, slope)
        self.ClassHead = nn.ModuleList(Head(channels, 2) for _ in range(3))
        self.BboxHead = nn.ModuleList(Head(channels, 4) for _ in range(3))
        self.LandmarkHead = nn.ModuleList(Head(channels, 10) for _ in range(3))
        self.LandmarkHead.requires_grad_(False)
        # A buffer, for it moves to the GPU once; and in no weight file, where no one expects it.
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, landmarks: bool = False) -> Predictions:
        """Predict at every anchor; `images`: [B, 3, H, W] RGB, 0-255, mean not subtracted."""
        x = images - self.mean  # [B, 3, H, W]
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
