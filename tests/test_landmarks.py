"""Trap 7: a landmark of -1 is absent; stretching and flipping must not turn it into a point."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.face_dataset import GeneratorSamples, labelled_source
from utils.image_files import write_photo
from utils.widerface import read_labels

ABSENT = " ".join(["-1.0 -1.0 -1.0"] * 5) + " 0"
PRESENT = " ".join(f"{40 + 5 * i} {50 + 3 * i} 0.0" for i in range(5)) + " 0.5"


def samples(folder: Path, landmarks: str) -> GeneratorSamples:
    labels = folder / "label.txt"
    labels.write_text(f"# a.png\n30 40 50 60 {landmarks}\n")
    source = labelled_source(folder, labels)
    return GeneratorSamples(source, 0, 96, (0.7, 1.3), (0.9, 1.2), 10, 0.5, 80, 128, 16)


def test_landmarks_present_or_absent_give_the_same_samples(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    write_photo(tmp_path / "a.png", pixels)
    flipped = set()
    for epoch in range(8):
        absent = samples(tmp_path, ABSENT)
        assert np.isnan(read_labels(tmp_path / "label.txt")[0].landmarks).all()
        images, boxes, _ = absent[(0, epoch, 0)]
        present = samples(tmp_path, PRESENT)
        assert not np.isnan(read_labels(tmp_path / "label.txt")[0].landmarks).any()
        others, other_boxes, _ = present[(0, epoch, 0)]
        assert all(np.array_equal(a, b) for a, b in zip(images, others, strict=True))
        assert np.array_equal(boxes, other_boxes)
        assert len(boxes) == 1
        flipped.add(boxes[0].tobytes())
    assert len(flipped) == 8
