import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

import utils.review_page
from tests.photo_folders import (
    LABELS,
    blind_detector,
    contents,
    label_file,
    make_folder,
    picture,
    refusal,
    run,
)
from tests.review_pages import heading_of, photos_of, picture_of
from utils.image_files import read_photo, write_photo
from utils.outputs import OutputError
from utils.review_page import write_review

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">'&amp;.png"


def line(name: str, **values: object) -> dict[str, object]:
    """A manifest's line about a photo without a face."""
    common = {"path": name, "status": "done", "method": "black", "output": name}
    return {**common, "source": "detector", "boxes": [], "scores": [], "flags": [], **values}


def output_folder(folder: Path, *entries: dict[str, object]) -> Path:
    """Write a manifest, and a copy for each of its lines that tells of one."""
    folder.mkdir(parents=True)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    for entry in entries:
        if entry["output"] is not None:
            write_photo(folder / str(entry["output"]), picture(0, 20, 24))
    return folder


def scored(name: str, *scores: float | None, **values: object) -> dict[str, object]:
    boxes = [[1.0, 2.0, 3.0, 4.0] for _ in scores]
    return line(name, boxes=boxes, scores=list(scores), **values)


def failed(name: str, status: str = "failed") -> dict[str, object]:
    error = f"{name}: broken" if status == "failed" else None
    return line(name, status=status, output=None, source=None, scores=None, error=error)


def test_the_page_shows_the_copies_and_never_an_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = tmp_path / "in", tmp_path / "review.html"
    labels = make_folder(folder)
    write_photo(folder / "large.png", picture(7, 1500, 700))
    label_file(labels, {**LABELS, "large.png": ["100 150 500 1200"]})
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:900])
    (folder / "film.mov").touch()
    options = (folder, "--labels", labels, "--method", "black", "--review", page)
    assert run(*options) == 1  # broken.png is not in the label file
    assert re.search(r"\nreview: .*review.html, 7 photos, 0\.\d MB\n$", capsys.readouterr().out)
    photos = {photo["path"]: photo for photo in photos_of(page)}
    for name in (*LABELS, "large.png"):
        copy = read_photo(tmp_path / "in_black" / name).pixels
        photo, shown = photos[name], picture_of(photos[name])
        assert (photo["height"], photo["width"]) == copy.shape[:2]
        assert photo["label"] == name
        assert max(shown.shape) == (1024 if name == "large.png" else 120)
        for x, y, w, h in photo["boxes"]:
            scale = len(shown) / len(copy)
            inside = [round(v * scale) for v in (y + 3, y + h - 3, max(x, 0) + 3, x + w - 3)]
            assert shown[inside[0] : inside[1], inside[2] : inside[3]].mean() < 8
    for name, words in {
        "broken.png": "not in the label file",
        "film.mov": "cannot be read",
    }.items():
        assert photos[name]["kind"] == "failed"
        assert photos[name]["image"] is None
        assert words in photos[name]["error"]


def test_a_page_can_be_made_over_and_holds_nothing_that_loads(tmp_path: Path) -> None:
    folder = output_folder(tmp_path / "out", scored("a.png", 0.5))
    page = tmp_path / "review.html"
    page.write_text("older")
    assert str(write_review(page, [folder])).startswith(f"review: {page}, 1 photos, ")
    text = page.read_text()
    assert not re.findall(r"https?:|url\(|@import|<link|<iframe|\bsrc=", text)
    assert "{{" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "review.html"]


def test_doubtful_photos_come_first_by_kind_and_score(tmp_path: Path) -> None:
    folder = output_folder(
        tmp_path / "out",
        scored("sure.png", 0.99),
        scored("b.png", 0.9, 0.31),
        scored("labelled.png", None, source="labels"),
        line("no_scores.png", source="labels", boxes=[[1, 2, 3, 4]], scores=None),
        scored("a.png", 0.4),
        scored("flagged.png", 0.9, flags=["tiny_box"]),
        scored("corrected.png", None, source="corrections"),
        line("corrected_to_none.png", source="corrections", scores=None),
        line("none.png"),
        failed("film.mov", "skipped"),
        failed("x.png"),
    )
    write_review(tmp_path / "page.html", [folder])
    assert [(photo["path"], photo["kind"]) for photo in photos_of(tmp_path / "page.html")] == [
        ("x.png", "failed"),
        ("film.mov", "failed"),
        ("none.png", "faceless"),
        ("flagged.png", "flagged"),
        ("b.png", "faces"),
        ("a.png", "faces"),
        ("sure.png", "faces"),
        ("labelled.png", "faces"),
        ("no_scores.png", "faces"),
        ("corrected.png", "corrected"),
        ("corrected_to_none.png", "corrected"),
    ]


def test_more_photos_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.review_page, "PER_PAGE", 5)
    faceless = [line(f"none{number}.png") for number in range(9)]
    faces = [scored(f"face{number}.png", 0.3 + number / 100) for number in range(20)]
    folder = output_folder(tmp_path / "out", *faceless, *faces, failed("x.png"))
    page = tmp_path / "a b.html"
    review = write_review(page, [folder], limit=12)
    assert [path.name for path in review.pages] == ["a b.html", "a b-2.html", "a b-3.html"]
    shown = [[photo["path"] for photo in photos_of(path)] for path in review.pages]
    # Each kind has the same room; what one does not need goes to the others.
    assert shown == [
        ["x.png", "none0.png", "none1.png", "face0.png", "face1.png"],
        ["none2.png", "none3.png", "face2.png", "face3.png", "face4.png"],
        ["none4.png", "face5.png"],
    ]
    assert (review.shown, review.total) == (12, 30)
    assert "to a b-3.html, 12 photos (18 more with a higher --review-limit)" in str(review)
    heading = heading_of(review.pages[1])
    assert heading["extent"].startswith("5 of 30 photos, the most doubtful first; 18 are on no ")
    assert heading["pages"] == ["a%20b.html", "a%20b-2.html", "a%20b-3.html"]
    assert (heading["number"], heading["download"]) == (2, "a b-2-corrections.txt")


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = {
        HOSTILE: HOSTILE,
        "</script><script>alert(1)</script>/a.png": "</script><script>alert(1)</script>/a.png",
        "#1.png": "./#1.png",
        " b/c.png": "./ b/c.png",
        "été.png": "été.png",
        "two\nlines.png": None,
        "back\\slash.png": None,
        "not\udcffutf8.png": None,
    }
    folder = output_folder(tmp_path / "out", *(line(name) for name in names))
    page = tmp_path / "page.html"
    write_review(page, [folder])
    assert {photo["path"]: photo["label"] for photo in photos_of(page)} == names
    assert all(photo["image"] for photo in photos_of(page))
    for photo in photos_of(page):
        refused = "cannot stand in a label file" in photo["fault"]
        assert refused == (photo["label"] is None)
    text = page.read_text()
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == len(names) + 2
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)[0]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for pattern in (r"<script>(.*)</script>", r"<style>(.*)</style>"):
        (code,) = re.findall(pattern, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_one_name_in_two_folders_is_shown_but_cannot_be_corrected(tmp_path: Path) -> None:
    folders = [
        output_folder(tmp_path / "x", line("a.png"), line("b.png")),
        output_folder(tmp_path / "y", line("a.png")),
    ]
    write_review(tmp_path / "page.html", folders)
    photos = photos_of(tmp_path / "page.html")
    assert [(photo["path"], photo["label"]) for photo in photos] == [
        ("a.png", None),
        ("a.png", None),
        ("b.png", "b.png"),
    ]
    assert "another folder has a photo of this name" in photos[0]["fault"]
    assert photos[0]["folder"] != photos[1]["folder"]


def test_a_copy_that_cannot_be_shown_is_said_to_be_missing(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "secret.png", picture(1))
    folder = output_folder(tmp_path / "out", line("gone.png"), line("out.png"), line("cut.png"))
    (folder / "gone.png").unlink()
    (folder / "cut.png").write_bytes(b"no picture")
    (folder / "out.png").unlink()
    (folder / "out.png").symlink_to(tmp_path / "in" / "secret.png")
    write_review(tmp_path / "page.html", [folder])
    photos = {photo["path"]: photo for photo in photos_of(tmp_path / "page.html")}
    for name, words in {
        "gone.png": "no such file",
        "cut.png": "not a picture",
        "out.png": "leads out of it",
    }.items():
        assert (photos[name]["kind"], photos[name]["image"]) == ("failed", None)
        assert words in photos[name]["error"]


@pytest.mark.parametrize(
    "values",
    [{"boxes": [[1, 2, 3]]}, {"boxes": "?"}, {"scores": [0.5]}, {"boxes": [[1, 2, 3, "wide"]]}],
)
def test_a_manifest_that_was_changed_by_hand(tmp_path: Path, values: dict[str, object]) -> None:
    folder = output_folder(tmp_path / "out", line("a.png", **values))
    with pytest.raises(OutputError, match=r"manifest\.jsonl: the line about 'a\.png' cannot be"):
        write_review(tmp_path / "page.html", [folder])
    assert not (tmp_path / "page.html").exists()


def test_an_output_without_photos(tmp_path: Path) -> None:
    review = write_review(tmp_path / "page.html", [output_folder(tmp_path / "out")])
    assert (review.shown, photos_of(tmp_path / "page.html")) == (0, [])


def test_places_for_the_page_are_checked_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = make_folder(tmp_path / "in")
    (tmp_path / "folder.html").mkdir()
    before = contents(tmp_path)
    options = (tmp_path / "in", "--labels", labels, "--method", "black", "--review")
    assert "must be a file named *.html" in refusal(capsys, *options, tmp_path / "in" / "a.png")
    assert "make the folder" in refusal(capsys, *options, tmp_path / "none" / "page.html")
    assert "not a place for a file" in refusal(capsys, *options, tmp_path / "folder.html")
    assert contents(tmp_path) == before
    with pytest.raises(SystemExit):
        run(*options, tmp_path / "page.html", "--review-limit", "0")


def test_a_page_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder, page = tmp_path / "in", tmp_path / "page.html"
    make_folder(folder, {"a.png": []})
    blind = blind_detector(tmp_path / "blind.safetensors")
    monkeypatch.setattr(utils.review_page, "_write_photo", full)
    assert run(folder, "--method", "black", "--detector", blind, "--review", page) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "dartblur.py: error: no review page: [Errno 28] No space left on device"
    assert not list(tmp_path.glob("*page*"))
