"""An attacker's network, trained to undo the anonymisation of faces, and the crops that it reads.

It works on square crops around a box, `SIDE` px wide, with the box's surroundings in view. Only
pixels inside the box are restored.
"""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import trange

from utils.blur import Pixels, face_mask

Floats = NDArray[np.float64]

SIDE = 128
MARGIN = 1.2
"""Side of the crop over the longer side of the box."""

CELL = 4
CHANNELS = (32, 64, 128, 256)
BATCH = 16
LEARNING_RATE = 4e-3


class RestorationError(Exception):
    """The training went wrong; the message is one line."""


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    )


class RestorationNet(nn.Module):
    """U-Net on cells of 4 × 4 pixels that adds what it believes the anonymisation took away.

    Cells bring a training down to minutes on a CPU. In the time it takes, cells of 2 pixels
    restore no better, and cells of 8 worse.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = (4 * CELL**2, *CHANNELS)
        self.down = nn.ModuleList(_convolutions(fine, coarse) for fine, coarse in pairwise(inputs))
        self.up = nn.ModuleList(
            _convolutions(fine + coarse, fine)
            for fine, coarse in zip(CHANNELS[-2::-1], CHANNELS[:0:-1], strict=True)
        )
        self.out = nn.Conv2d(CHANNELS[0], 3 * CELL**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)  # starts as the identity
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Restore faces [B, 3, H, W] in [0, 1], H and W multiples of 32, within [B, 1, H, W]."""
        features = F.pixel_unshuffle(torch.cat([hidden, mask], dim=1) * 2 - 1, CELL)
        skips = []
        for level, block in enumerate(self.down):
            if level:
                features = F.max_pool2d(features, 2)
            features = block(features)
            skips.append(features)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            features = block(torch.cat([skip, F.interpolate(features, scale_factor=2.0)], dim=1))
        return hidden + mask * F.pixel_shuffle(self.out(features), CELL)


def _crop_matrix(box: Floats) -> Floats:
    """Affine map [2, 3] from the photo's pixels to those of the crop around `box` [4]."""
    scale = SIDE / (MARGIN * max(box[2] - box[0], box[3] - box[1]))
    # Pixel centres lie at whole numbers for OpenCV, at halves in a box.
    shift = SIDE / 2 - 0.5 - scale * ((box[:2] + box[2:]) / 2 - 0.5)
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])


def face_crop(image: Pixels, box: Floats) -> Pixels:
    """The crop [SIDE, SIDE, 3] around `box` [4] of uint8 [H, W, 3]; beyond the edge, mirrored."""
    crop = cv2.warpAffine(
        image,
        _crop_matrix(box),
        (SIDE, SIDE),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    return np.asarray(crop, dtype=np.uint8)


def crop_mask(image: Pixels, box: Floats) -> NDArray[np.uint8]:
    """Where the box lies in its crop: [SIDE, SIDE], 1 inside."""
    mask = face_mask(box[None], *image.shape[:2])
    size = (SIDE, SIDE)
    return np.asarray(cv2.warpAffine(mask, _crop_matrix(box), size, flags=cv2.INTER_NEAREST))


def paste_crop(image: Pixels, box: Floats, crop: Pixels) -> Pixels:
    """A copy of uint8 [H, W, 3] with the pixels of `box` taken from its crop."""
    height, width = image.shape[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    back = cv2.warpAffine(
        crop, _crop_matrix(box), (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.where(face_mask(box[None], height, width)[..., None] > 0, back, image)


def train_restoration(
    hidden: Pixels, clean: Pixels, masks: Pixels, steps: int, seed: int, device: torch.device
) -> tuple[RestorationNet, list[float]]:
    """Train on pairs of crops, uint8 [N, SIDE, SIDE, 3] with masks [N, SIDE, SIDE].

    Adam with one cycle of the learning rate on the mean absolute error inside the masks; half of
    the samples are mirrored. Returns the network in eval mode and the loss of each step in grey
    levels. Raises `RestorationError` where the loss stops being a number.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RestorationNet()
    network.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    order: list[int] = []
    losses = []
    for _ in trange(steps, desc="restoration", unit=" steps"):
        while len(order) < BATCH:
            order += rng.permutation(len(hidden)).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        inputs, mask = as_input(hidden[batch], masks[batch], device)
        wanted, _ = as_input(clean[batch], masks[batch], device)
        mirrored = torch.from_numpy(rng.random(BATCH) < 0.5).to(device)[:, None, None, None]
        inputs, mask, wanted = (
            torch.where(mirrored, values.flip(3), values) for values in (inputs, mask, wanted)
        )
        error = (network(inputs, mask) - wanted).abs() * mask
        loss = error.sum() / (3 * mask.sum())
        losses.append(255 * loss.item())
        if not math.isfinite(losses[-1]):
            raise RestorationError(f"the loss of step {len(losses)} is {losses[-1]}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval(), losses


def as_input(crops: Pixels, masks: Pixels, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 [B, SIDE, SIDE, 3] and masks [B, SIDE, SIDE] as float [B, 3, ...] and [B, 1, ...]."""
    pixels = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.from_numpy(masks).to(device)[:, None].float()


@torch.inference_mode()
def restore(network: RestorationNet, hidden: Pixels, masks: Pixels) -> Pixels:
    """Restore crops, uint8 [N, SIDE, SIDE, 3] with masks [N, SIDE, SIDE]; same shape and type."""
    device = next(network.parameters()).device
    restored = []
    for start in range(0, len(hidden), BATCH):
        part = slice(start, start + BATCH)
        output = network(*as_input(hidden[part], masks[part], device))
        pixels = (output * 255).round().clamp(0, 255).to(torch.uint8)
        restored.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(restored)
