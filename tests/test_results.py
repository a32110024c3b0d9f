from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from utils.results import Results, markdown_table, write_results

PROVENANCE: dict[str, Any] = {
    "command": "python evaluate.py something",
    "commit": "0123abcd-dirty",
    "date": "2026-01-01T00:00:00+00:00",
    "machine": {"cpu": "Some CPU", "cores": 8, "threads": 2, "gpus": ["Some GPU"]},
    "system": "Linux",
    "versions": {"python": "3.12.1", "torch": "2.9"},
}
FACTS = [
    "python evaluate.py something",
    "0123abcd-dirty",
    "3, 4",
    "Some CPU",
    "8 cores",
    "Some GPU",
]


def some_results(**changes: Any) -> Results:
    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1])
    values: dict[str, Any] = {
        "ap": 0.5,
        "undefined": [math.nan, (math.inf, {"a": -math.inf, 1: 2})],
    }
    text = markdown_table(("set", "AP"), [("easy", "0.5")])
    given = {"values": values, "text": text, "figures": {"curve": figure}, **changes}
    return Results("A title", "300 photos – a part.", [3, 4], **given)


def no_constants(text: str) -> float:
    raise AssertionError(f"{text} is not JSON")


def test_every_file_says_where_it_comes_from(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "mine"
    write_results(folder, some_results(), PROVENANCE)
    assert {path.name for path in folder.iterdir()} == {"results.json", "results.md", "curve.png"}
    record = json.loads((folder / "results.json").read_text("utf-8"), parse_constant=no_constants)
    assert record == {
        "title": "A title",
        "data": "300 photos – a part.",
        "seeds": [3, 4],
        "results": {"ap": 0.5, "undefined": [None, [None, {"a": None, "1": 2}]]},
        "provenance": PROVENANCE,
    }
    text = (folder / "results.md").read_text("utf-8")
    assert text.startswith("# A title\n\n300 photos – a part.\n\n| set | AP |\n| --- | --- |\n")
    assert "| easy | 0.5 |\n\n![curve](curve.png)\n" in text
    with Image.open(folder / "curve.png") as image:
        image.load()
        caption = " ".join(map(str, image.info.values()))
    for fact in FACTS:
        assert fact in text
        assert fact in caption
    assert "300 photos – a part." in caption


def test_a_figure_that_cannot_be_drawn_leaves_the_older_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, some_results(), PROVENANCE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = Figure()
    broken.subplots().set_title("$\\nonsense{$")
    with pytest.raises(ValueError, match="nonsense"):
        write_results(tmp_path, some_results(figures={"curve": broken}), PROVENANCE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_random_is_said_so(tmp_path: Path) -> None:
    bare = Results("T", "D", [], {}, "text")
    machine = {**PROVENANCE["machine"], "gpus": []}
    write_results(tmp_path, bare, {**PROVENANCE, "machine": machine})
    text = (tmp_path / "results.md").read_text("utf-8")
    assert "Seeds: none, nothing is random" in text
    assert "no GPU" in text
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["seeds"] == []
