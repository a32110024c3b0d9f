"""Runs RetinaFace on photos: faces in the photo's own pixels."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import box_iou, nms

from models.anchors import anchor_grid, batched_iou, decode
from models.multibox import Targets
from models.retinaface import MEAN_RGB, RetinaFace
from utils.boxes import Boxes
from utils.image_files import Pixels
from utils.prediction_files import Detections

MAX_CANDIDATES = 1024
"""Anchors of an image that pseudo-labels are made of, at most."""

MAX_FACES = 512
"""Pseudo-labels of an image, at most."""

ROUNDS = 15
"""Rounds of `suppress`; odd, so that none of its kept boxes is one too many."""

GRID = 64
"""Passes over a photo are filled up to a multiple of this, px: few shapes, many equal ones."""

PADDING = tuple(int(value) for value in MEAN_RGB)
"""The filling, R, G and B: zero to the network, as what its convolutions see beyond an edge."""

BATCH_PIXELS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Pixels of a batch, at most. On the CPU large batches are no faster, and leave the caches."""

JOINED_AT_ONCE = 1024
"""Finds whose overlaps with all faces of a photo are in memory at a time."""


class DetectionError(Exception):
    """The detector returned a value that is not finite."""


def detect(detector: RetinaFace, image: Pixels, score: float, nms_iou: float) -> Detections:
    """Faces of one photo at its own size.

    `image`: uint8 [H, W, 3] RGB. Returns boxes float64 [N, 4] as (x1, y1, x2, y2), clipped
    to the photo, and face probabilities float64 [N] of at least `score`, best first. The
    detector must be in eval mode. Raises `DetectionError` if it returns NaN or infinity.
    """
    return _detect_frames(detector, image[None], [image.shape[:2]], score, nms_iou)[0]


@torch.no_grad()
def _detect_frames(
    detector: RetinaFace,
    frames: Pixels,
    sizes: Sequence[tuple[int, ...]],
    score: float,
    nms_iou: float,
) -> list[Detections]:
    """Faces of several photos, each in the upper left corner of a frame; otherwise as `detect`.

    `frames`: uint8 [B, H, W, 3] RGB, filled up with `PADDING`. `sizes`: (height, width) of each
    photo.
    """
    device = next(detector.parameters()).device
    predictions = detector(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2))
    # NaN is not above any score: the photo would pass for one without a face.
    if not all(torch.isfinite(values).all() for values in predictions[:2]):
        raise DetectionError("the detector returned values that are not finite")
    anchors = anchor_grid(*frames.shape[1:3], device)
    found = []
    for (height, width), logits, offsets in zip(
        sizes, predictions.logits, predictions.offsets, strict=True
    ):
        probabilities = logits.softmax(dim=-1)[:, 1]
        candidates = (probabilities >= score).nonzero()[:, 0]
        probabilities = probabilities[candidates]
        boxes = decode(offsets[candidates], anchors[candidates])
        kept = nms(boxes, probabilities, nms_iou)
        clipped = boxes[kept].cpu().numpy().astype(np.float64)
        clipped = clipped.clip(0, [width, height] * 2)
        # In the filling alone: no face of the photo.
        is_inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        scores = probabilities[kept].cpu().numpy().astype(np.float64)
        found.append((clipped[is_inside], scores[is_inside]))
    return found


def pass_sizes(
    height: int, width: int, zoom: float, longest_side: int, shortest_pass: int
) -> list[tuple[int, int]]:
    """The sizes (height, width) at which a photo is searched, largest first.

    The first is `zoom` times the photo's size, but with a longest side of at most
    `longest_side` px; each further one halves it while that leaves at least `shortest_pass` px.
    """
    side = min(round(max(height, width) * zoom), longest_side)
    sizes: list[tuple[int, int]] = []
    while not sizes or side >= shortest_pass:
        scale = side / max(height, width)
        sizes.append((max(1, round(height * scale)), max(1, round(width * scale))))
        side //= 2
    return sizes


def detect_passes(
    detector: RetinaFace,
    images: Sequence[Pixels],
    sizes: Sequence[Sequence[tuple[int, int]]],
    score: float,
    nms_iou: float,
    flip: bool = False,
) -> list[list[Detections]]:
    """Search several photos at several sizes each; photos of any sizes go together.

    `images`: uint8 [H, W, 3] RGB. `sizes`: for each photo its passes as (height, width). With
    `flip`, every pass is made a second time on the mirrored photo, after all others. Returns for
    each photo and pass what `detect` returns, boxes in the photo's own pixels.

    Every pass is filled up to a multiple of `GRID` px, also that of a single photo: what is
    found in a photo does not depend on its company. Passes of one such size share a batch of at
    most `BATCH_PIXELS`, or of one pass; they are made when their turn comes, so memory grows
    with the largest pass and not with the number of photos. Raises `DetectionError` if any
    photo makes the detector return NaN or infinity; searched one by one, the others succeed.
    """
    mirrorings = (False, True) if flip else (False,)
    searches = [
        [_Pass(index, *size, mirrored) for mirrored in mirrorings for size in passes]
        for index, passes in enumerate(sizes)
    ]
    groups: dict[tuple[int, int], list[_Pass]] = defaultdict(list)
    for search in itertools.chain(*searches):
        groups[search.frame].append(search)
    most = BATCH_PIXELS[next(detector.parameters()).device.type]
    found: dict[_Pass, Detections] = {}
    for (height, width), group in groups.items():
        count = max(1, most // (height * width))
        for start in range(0, len(group), count):
            batch = group[start : start + count]
            frames = np.empty((len(batch), height, width, 3), dtype=np.uint8)
            frames[:] = PADDING
            for frame, search in zip(frames, batch, strict=True):
                search.draw(images[search.photo], frame)
            results = _detect_frames(
                detector,
                frames,
                [(search.height, search.width) for search in batch],
                score,
                nms_iou,
            )
            for search, (boxes, scores) in zip(batch, results, strict=True):
                found[search] = search.on_photo(images[search.photo], boxes), scores
    return [[found[search] for search in passes] for passes in searches]


@dataclass(frozen=True)
class _Pass:
    """One search over one photo.

    photo: its index. height, width: what it is scaled to. mirrored: left and right swapped.
    """

    photo: int
    height: int
    width: int
    mirrored: bool

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of the frame that it is filled up to."""
        return -(-self.height // GRID) * GRID, -(-self.width // GRID) * GRID

    def draw(self, image: Pixels, frame: Pixels) -> None:
        """Put the photo into the upper left corner of `frame`, uint8 [H, W, 3]."""
        scaled = image
        if image.shape[:2] != (self.height, self.width):
            smooth = cv2.INTER_AREA if self.height < image.shape[0] else cv2.INTER_LINEAR
            scaled = np.asarray(
                cv2.resize(image, (self.width, self.height), interpolation=smooth), dtype=np.uint8
            )
        frame[: self.height, : self.width] = scaled[:, ::-1] if self.mirrored else scaled

    def on_photo(self, image: Pixels, boxes: Boxes) -> Boxes:
        """Carry boxes [N, 4] from the frame over to the photo's own pixels."""
        height, width = image.shape[:2]
        if self.mirrored:
            left, top, right, bottom = boxes.T
            boxes = np.stack([self.width - right, top, self.width - left, bottom], axis=1)
        return boxes * np.array([width / self.width, height / self.height] * 2)


def detect_at_scales(
    detector: RetinaFace,
    images: Sequence[Pixels],
    score: float,
    nms_iou: float,
    zoom: float,
    longest_side: int,
    shortest_pass: int,
    largest_face: int,
    flip: bool,
) -> list[Detections]:
    """Faces of several photos, each searched at several sizes: small, large and huge faces.

    The arguments are those of `pass_sizes`, `detect_passes` and `within_reach`. Returns for
    each photo boxes float64 [N, 4] as (x1, y1, x2, y2) within it and face probabilities
    float64 [N], best first. Raises `DetectionError`, see `detect_passes`.
    """
    sizes = [
        pass_sizes(image.shape[0], image.shape[1], zoom, longest_side, shortest_pass)
        for image in images
    ]
    found = []
    for image, passes, detections in zip(
        images, sizes, detect_passes(detector, images, sizes, score, nms_iou, flip), strict=True
    ):
        reached = within_reach(detections, passes, max(image.shape[:2]), largest_face)
        found.append(join_passes(reached, nms_iou))
    return found


def within_reach(
    detections: Sequence[Detections],
    sizes: Sequence[tuple[int, int]],
    longest_side: int,
    largest_face: float,
) -> list[Detections]:
    """The finds of one photo, without large ones that a smaller pass sees better.

    A find whose side (the root of its area) is above `largest_face` px at the size of its pass
    counts in the last, smallest pass alone. Nearly all large false finds come from there, for
    the network sees little more of the photo than the find itself. `detections` and `sizes` as
    in `detect_passes`; `longest_side`: the photo's, px.
    """
    reached = []
    for place, (boxes, scores) in enumerate(detections):
        size = sizes[place % len(sizes)]  # mirrored passes follow the plain ones
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) * max(size) / longest_side
        counts = (sides <= largest_face) | (size == sizes[-1])
        reached.append((boxes[counts], scores[counts]))
    return reached


def join_passes(passes: Sequence[Detections], nms_iou: float) -> Detections:
    """One list of faces from the finds of several passes over one photo, best first.

    A face found in several passes gets one box around all of its finds: the surest find may
    cover less of it than another. A find belongs to the surest face that is left after
    non-maximum suppression and that it overlaps most, by an IoU above `nms_iou`.
    """
    boxes = torch.from_numpy(np.concatenate([boxes for boxes, _ in passes]))
    scores = torch.from_numpy(np.concatenate([scores for _, scores in passes]))
    if not len(boxes):
        return boxes.numpy(), scores.numpy()
    kept = nms(boxes, scores, nms_iou)
    joined = boxes[kept].numpy()
    for finds in boxes.split(JOINED_AT_ONCE):
        overlap, face = box_iou(finds, boxes[kept]).max(dim=1)
        members = finds[overlap > nms_iou].numpy()
        faces = face[overlap > nms_iou].numpy()
        np.minimum.at(joined[:, :2], faces, members[:, :2])
        np.maximum.at(joined[:, 2:], faces, members[:, 2:])
    return joined, scores[kept].numpy()


def fold_batch_norms(detector: RetinaFace) -> None:
    """Work the BatchNorms into the convolutions before them, for good: for use, not training.

    The detector must be in eval mode. It gets faster and needs less memory; logits move by
    rounding, about 1e-6.
    """
    for block in detector.modules():
        if not isinstance(block, nn.Sequential):
            continue
        for index, (convolution, norm) in enumerate(itertools.pairwise(block)):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[index] = fuse_conv_bn_eval(convolution, norm)
                block[index + 1] = nn.Identity()


@torch.no_grad()
def pseudo_labels(
    critic: RetinaFace, images: Tensor, score_logit: float, nms_iou: float
) -> Targets:
    """The faces t that the critic finds on clean images (`method`: thresholded *logit*).

    `images`: [B, 3, H, W] RGB, 0-255. Of each image, the `MAX_CANDIDATES` anchors with the
    highest raw face logit count, where it reaches `score_logit`; then non-maximum suppression,
    then the best `MAX_FACES`. An image without a find has no present box. The critic must be
    in eval mode. All shapes are fixed beforehand, so nothing waits for the device.
    """
    predictions = critic(images)
    anchors = anchor_grid(*images.shape[2:], images.device)
    logits, index = predictions.logits[..., 1].topk(min(MAX_CANDIDATES, len(anchors)))  # [B, K]
    offsets = predictions.offsets.gather(1, index[..., None].expand(-1, -1, 4))
    boxes = decode(offsets, anchors[index])  # [B, K, 4], best first
    kept = suppress(boxes, logits >= score_logit, nms_iou)
    # The kept ones move to the front, in order; what is left over is not present.
    order = kept.byte().argsort(dim=1, descending=True, stable=True)[:, :MAX_FACES]
    return Targets(boxes.gather(1, order[..., None].expand(-1, -1, 4)), kept.gather(1, order))


def suppress(boxes: Tensor, valid: Tensor, nms_iou: float) -> Tensor:
    """Greedy non-maximum suppression of a whole batch at once; bool [B, K], what is kept.

    `boxes`: [B, K, 4], best first; `valid`: bool [B, K]. A box is dropped where its IoU with a
    better one that is kept exceeds `nms_iou`. The greedy rule is the fixed point of "kept unless
    a better kept box covers me"; started from all, every second round keeps too few and the
    others too many, until they meet. A box at the end of a chain of more than `ROUNDS` boxes that
    each drop the next is dropped in doubt.
    """
    better = torch.ones(boxes.shape[1:2] * 2, dtype=torch.bool, device=boxes.device).triu(1)
    covers = ((batched_iou(boxes, boxes) > nms_iou) & better).to(boxes.dtype)  # [B, K, K]
    kept = valid
    for _ in range(ROUNDS):
        kept = valid & (kept.to(boxes.dtype)[:, None] @ covers < 0.5)[:, 0]
    return kept
