"""Pictures of a training for people to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

from models.detection import pseudo_labels
from models.retinaface import RetinaFace

COLOURS = ("lime", "red", "cyan", "yellow")

IMAGES = 4
"""Images of a batch that are drawn, at most."""


@torch.no_grad()
def comparison(versions: Sequence[Tensor], detectors: Mapping[str, RetinaFace]) -> Tensor:
    """A row an image, a column a version, with the boxes that each detector finds there.

    `versions`: float [B, 3, H, W] RGB, 0-255, each the same images in another version.
    `detectors`: at most four, drawn in lime, red, cyan and yellow in this order; their mode is
    left as it was. Returns uint8 [3, H', W'].
    """
    columns = []
    for images in versions:
        images = images[:IMAGES]
        drawn = list(images.round().clamp(0, 255).byte().cpu())
        for (name, detector), colour in zip(detectors.items(), COLOURS, strict=False):
            was_training = detector.training
            found = pseudo_labels(detector.eval(), images, score_logit=0.01, nms_iou=0.45)
            detector.train(was_training)
            for index, (boxes, present) in enumerate(zip(found.boxes, found.present, strict=True)):
                kept = boxes[present].cpu()
                height, width = images.shape[2:]
                kept[:, 0::2] = kept[:, 0::2].clamp(0, width - 1)
                kept[:, 1::2] = kept[:, 1::2].clamp(0, height - 1)
                kept = kept[(kept[:, 2:] > kept[:, :2]).all(dim=1)]
                if len(kept):
                    drawn[index] = draw_bounding_boxes(
                        drawn[index], kept, [name] * len(kept), colour, width=2
                    )
        columns.append(torch.stack(drawn))
    tiles = torch.stack(columns, dim=1).flatten(0, 1)  # [B * versions, 3, H, W], row by row
    return make_grid(tiles, nrow=len(versions), padding=4)
