"""Recognises faces with dlib's ResNet, the eyes of the privacy measurement.

Model and weights come from the packages dlib-bin and face_recognition_models, which only the
measurement needs (`requirements-eval.txt`). The landmark model is the one of five points, whose
weights are in the public domain (those of the one of 68 points are not free for all use).
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.blur import Pixels
from utils.boxes import Boxes, as_boxes

Floats = NDArray[np.float64]

EMBEDDING = 128
SAME_PERSON = 0.6
"""Two embeddings closer than this are one person, by dlib's own example."""

INSTALL = "pip install -r requirements-eval.txt"


class RecognitionError(Exception):
    """The face recogniser cannot be loaded; the message is one line."""


@dataclass(frozen=True)
class FaceRecogniser:
    """dlib's face detector, five-point landmarks and ResNet."""

    dlib: Any
    detector: Any
    predictor: Any
    network: Any

    def find(self, image: Pixels) -> Boxes:
        """Faces that dlib's own detector finds in uint8 [H, W, 3] RGB, boxes [N, 4]."""
        found = self.detector(image, 1)  # searched at twice its size
        return as_boxes([(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in found])

    def landmarks(self, image: Pixels, box: Floats) -> Floats:
        """Corners of the eyes and base of the nose in `box` [4], (x, y) in whole pixels [5, 2]."""
        shape = self.predictor(image, self._rectangle(box))
        return np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float64)

    def embed(self, image: Pixels, landmarks: Floats) -> Floats:
        """Embedding [128] of the face that `landmarks` [5, 2] align.

        The landmarks may come from another copy of the photo, so that what hides the face does not
        also hide where it is.
        """
        points = [self.dlib.point(int(x), int(y)) for x, y in landmarks.round()]
        frame = self._rectangle(np.concatenate([landmarks.min(axis=0), landmarks.max(axis=0)]))
        shape = self.dlib.full_object_detection(frame, points)
        return np.array(self.network.compute_face_descriptor(np.ascontiguousarray(image), shape))

    def _rectangle(self, box: Floats) -> Any:
        x1, y1, x2, y2 = box.round().astype(int).tolist()
        return self.dlib.rectangle(x1, y1, x2 - 1, y2 - 1)


def load_recogniser() -> FaceRecogniser:
    """Load the three models. Raises `RecognitionError` where a package is missing or broken."""
    # face_recognition_models cannot be imported beside a current setuptools (it wants
    # pkg_resources), and need not be: it is a folder of files.
    package = importlib.util.find_spec("face_recognition_models")
    if package is None or package.origin is None:
        raise RecognitionError(f"the package face_recognition_models is missing: {INSTALL}")
    folder = Path(package.origin).parent / "models"
    try:
        dlib = importlib.import_module("dlib")
        return FaceRecogniser(
            dlib,
            dlib.get_frontal_face_detector(),
            dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat")),
            dlib.face_recognition_model_v1(
                str(folder / "dlib_face_recognition_resnet_model_v1.dat")
            ),
        )
    except ImportError as error:
        raise RecognitionError(f"dlib cannot be loaded ({error}): {INSTALL}") from None
    except RuntimeError as error:  # what dlib raises for a file that is missing or cut short
        reason = " ".join(str(error).split())
        raise RecognitionError(f"{folder}: {reason}; reinstall with {INSTALL}") from None
