#!/usr/bin/env python
"""Draws img/before_after.jpg: a sample photo clean, with Gaussian blur, and with DartBlur.

python img/draw_before_after.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.anonymize import find_faces, load_anonymizer
from utils.config import load_config
from utils.image_files import read_photo, write_photo

IMG = Path(__file__).resolve().parent
GAP, CAPTION = 12, 40


def main() -> None:
    """Anonymise the sample in two ways and lay the three pictures side by side."""
    config = load_config()
    pixels = read_photo(IMG / "samples" / "eileen_collins.jpg").pixels
    dartblur = load_anonymizer("dartblur", config)
    assert dartblur.detector is not None
    boxes, _ = find_faces(dartblur.detector, pixels, config)
    panels = {
        "clean": pixels,
        "Gaussian blur": load_anonymizer("gaussian", config, detector=None)(pixels, boxes).pixels,
        "DartBlur": dartblur(pixels, boxes).pixels,
    }
    height, width = pixels.shape[:2]
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + CAPTION), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=24)
    for index, (caption, panel) in enumerate(panels.items()):
        left = index * (width + GAP)
        sheet.paste(Image.fromarray(panel), (left, 0))
        pen.text((left + width / 2, height + 6), caption, fill="black", font=font, anchor="ma")
    write_photo(IMG / "before_after.jpg", np.asarray(sheet), jpeg_quality=92)


if __name__ == "__main__":
    main()
