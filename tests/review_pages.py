"""Review pages read back: what a browser would find in them."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.blur import Pixels


def heading_of(page: Path) -> dict[str, Any]:
    found = re.findall(
        r'<script type="application/json" id="page">(.*?)</script>', page.read_text()
    )
    return dict(json.loads(found[0]))


def photos_of(page: Path) -> list[dict[str, Any]]:
    found = re.findall(
        r'<script type="application/json" class="photo">(.*?)</script>', page.read_text()
    )
    return [json.loads(text) for text in found]


def picture_of(photo: dict[str, Any]) -> Pixels:
    head, data = photo["image"].split(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.array(image.convert("RGB"))


def official_labels(path: Path, photos: dict[str, list[list[float]]]) -> Path:
    """Write a label file as the page saves it: x y w h, and zeros for the six attributes."""
    lines: list[str] = []
    for name, boxes in photos.items():
        rows = [" ".join(map(str, [*box, *[0] * 6])) for box in boxes]
        lines += [name, str(len(boxes)), *(rows or [" ".join("0" * 10)])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
