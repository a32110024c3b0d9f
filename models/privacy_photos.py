"""The photos of the privacy measurement: portraits with a known face, and faces to train on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.anonymize import find_faces
from models.recognition import FaceRecogniser
from models.retinaface import RetinaFace
from utils.boxes import Boxes, as_boxes, enlarge, xyxy_to_xywh
from utils.image_files import Pixels, read_photo, write_photo
from utils.widerface import find_labels, photo_path, read_labels

Floats = NDArray[np.float64]

CENTRE = (0.28, 0.28, 0.72, 0.72)
"""Where the face lies in a photo of LFW, in shares of its sides."""

SMALLEST = 60
"""px, shorter side of a labelled face that is worth training on."""

SURROUNDINGS = 1.6
"""Side of the cut around a training face over the longer side of its box."""


@dataclass(frozen=True)
class Face:
    """A photo with the boxes to hide, float64 [N, 4], that of the face in question first."""

    pixels: Pixels
    boxes: Boxes


@dataclass(frozen=True)
class Portrait(Face):
    """A photo of one known person, seen clean.

    landmarks: float64 [5, 2]. landmarks_from: "dlib", "retinaface" or "centre", who found the face
    for the landmarks. box_from: "retinaface" or "dlib", who found the box that is hidden.
    """

    landmarks: Floats
    landmarks_from: str
    box_from: str


def read_portrait(
    path: Path, recogniser: FaceRecogniser, detector: RetinaFace, config: Mapping[str, Any]
) -> Portrait:
    """Read a photo of LFW and find the face nearest to its centre.

    All faces that the anonymiser's detector finds are to be hidden; where it misses the one in
    question, dlib's box is, enlarged alike. Raises `PhotoError` or `DetectionError`.
    """
    pixels = read_photo(path).pixels
    height, width = pixels.shape[:2]
    middle = np.array([width, height]) / 2
    boxes, _ = find_faces(detector, pixels, config)
    ours, theirs = _around(boxes, middle), _around(recogniser.find(pixels), middle)
    if len(theirs):
        face, landmarks_from = theirs[0], "dlib"
    elif len(ours):
        # dlib's boxes are square, from the brows down.
        face, landmarks_from = ours[0].copy(), "retinaface"
        face[1] = face[3] - (face[2] - face[0])
    else:
        face, landmarks_from = np.array(CENTRE) * [width, height, width, height], "centre"
    landmarks = recogniser.landmarks(pixels, face)
    hidden = _around(boxes, landmarks.mean(axis=0))
    if len(hidden):
        others = boxes[(boxes != hidden[0]).any(axis=1)]
        return Portrait(
            pixels, np.stack([hidden[0], *others]), landmarks, landmarks_from, "retinaface"
        )
    added = enlarge(face[None], config["detect"]["enlarge"])
    return Portrait(pixels, np.concatenate([added, boxes]), landmarks, landmarks_from, "dlib")


def _around(boxes: Boxes, point: Floats) -> Boxes:
    """The boxes [N, 4] that hold `point` (x, y), the one centred nearest to it first."""
    holding = boxes[((boxes[:, :2] < point) & (point < boxes[:, 2:])).all(axis=1)]
    distances = np.linalg.norm((holding[:, :2] + holding[:, 2:]) / 2 - point, axis=1)
    return holding[distances.argsort(kind="stable")]


def training_faces(
    root: Path, sides: Floats, factor: float, count: int, rng: np.random.Generator
) -> Iterator[Face]:
    """Draw up to `count` labelled faces of WIDER FACE's training photos, cut out with surroundings.

    Each is scaled so that the longer side of its box, enlarged by `factor`, is one of `sides` (px):
    what blur, coding and the generator do to a face depends on its size. Raises `PhotoError`,
    `LabelError` and FileNotFoundError.
    """
    listed = []
    for photo in read_labels(find_labels(root, "train")):
        large = xyxy_to_xywh(photo.boxes)[:, 2:].min(axis=1) >= SMALLEST
        listed += [(photo.path, box) for box in photo.boxes[large]]
    drawn = sorted(rng.permutation(len(listed))[:count].tolist())
    images_dir = root / "train" / "images"
    for path, box in (listed[index] for index in drawn):
        pixels = read_photo(photo_path(images_dir, path)).pixels
        yield cut_face(pixels, enlarge(box[None], factor)[0], float(rng.choice(sides)))


def cut_face(pixels: Pixels, box: Floats, side: float) -> Face:
    """Cut out the surroundings of `box` [4], scaled so that its longer side is `side` px."""
    height, width = pixels.shape[:2]
    longer = max(box[2] - box[0], box[3] - box[1])
    centre = (box[:2] + box[2:]) / 2
    start = np.floor(centre - SURROUNDINGS / 2 * longer).clip(0)
    end = np.minimum(np.ceil(centre + SURROUNDINGS / 2 * longer), [width, height])
    (x1, y1), (x2, y2) = start.astype(int).tolist(), end.astype(int).tolist()
    size = (max(1, round((x2 - x1) * side / longer)), max(1, round((y2 - y1) * side / longer)))
    method = cv2.INTER_AREA if side < longer else cv2.INTER_CUBIC
    cut = cv2.resize(pixels[y1:y2, x1:x2], size, interpolation=method)
    zoom = np.array([size[0] / (x2 - x1), size[1] / (y2 - y1)] * 2)
    return Face(np.asarray(cut, dtype=np.uint8), as_boxes([(box - [x1, y1, x1, y1]) * zoom]))


def as_written(pixels: Pixels, coding: Mapping[str, Any], folder: Path) -> Pixels:
    """Return uint8 [H, W, 3] as it is read back from a copy that dartblur.py writes.

    `coding`: the section `output` of the recipe. `folder`: a place for the copy.
    """
    path = folder / "photo.jpg"
    write_photo(
        path,
        pixels,
        jpeg_quality=coding["jpeg_quality"],
        subsampling=coding["jpeg_subsampling"],
    )
    return read_photo(path).pixels
