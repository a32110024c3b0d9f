"""Odd names, links, missing rights and a full disk, through `python dartblur.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import photo_kinds as kinds
from tests.photo_folders import (
    blind_detector,
    contents,
    files_below,
    label_file,
    manifest,
    picture,
    refusal,
    run,
)
from utils.image_files import PhotoError, read_photo, write_photo

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_detector(tmp_path_factory.mktemp("weights") / "blind.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")
def test_all_names_are_kept_and_shown_on_one_line(
    tmp_path: Path, blind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    (folder / "sub folder").mkdir(parents=True)
    long = "n" * 251 + ".png"
    names = ["a b.png", "two\nlines.png", "ü 写真.png", "\x1b[31mred.png"]
    names.append(os.fsdecode(b"\xff\xfe.png"))
    for name in [*names, f"sub folder/{names[1]}", long]:
        kinds.pillow(picture(0))(folder / name)
    (folder / "broken\n\x1b[2J.png").write_bytes(b"?")
    (folder / os.fsdecode(b"\xfebroken.png")).write_bytes(b"?")
    assert run(folder, "--method", "black", "--detector", blind) == 1
    written = {*names, f"sub folder/{names[1]}", long}
    assert files_below(tmp_path / "in_black") == {*written, "manifest.jsonl"}
    entries = manifest(tmp_path / "in_black")
    assert {name for name, entry in entries.items() if entry["status"] == "done"} == written
    captured = capsys.readouterr()
    failures = [line for line in captured.err.splitlines() if line.startswith("failed")]
    assert len(failures) == 2
    assert "broken\\n\\x1b[2J.png: not a picture" in captured.err
    assert "\\udcfebroken.png: not a picture" in captured.err
    assert "\x1b[2J" not in captured.err


def test_links(tmp_path: Path, blind: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (folder / "real").mkdir(parents=True)
    elsewhere.mkdir()
    kinds.pillow(picture(0))(folder / "real" / "a.png")
    kinds.pillow(picture(1))(elsewhere / "b.png")
    try:
        (folder / "inside.png").symlink_to(folder / "real" / "a.png")
    except OSError:
        pytest.skip("this system does not let us make symbolic links")
    (folder / "out.png").symlink_to(elsewhere / "b.png")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "linked folder").symlink_to(elsewhere, target_is_directory=True)
    (folder / "real" / "up").symlink_to(folder, target_is_directory=True)
    before = contents(elsewhere)
    assert run(folder, "--method", "black", "--detector", blind) == 1
    output = tmp_path / "in_black"
    assert files_below(output) == {"real/a.png", "inside.png", "out.png", "manifest.jsonl"}
    assert not any(path.is_symlink() for path in output.rglob("*"))
    assert contents(elsewhere) == before
    error = capsys.readouterr().err
    assert f"failed, no output: {folder / 'dangling.png'}: a link to nothing" in error
    assert f"failed, no output: {folder / 'loop.png'}: " in error
    for name in ("linked folder", "real/up"):
        assert f"skipped, links to folders are not followed: {folder / name}" in error
        assert manifest(output)[name]["status"] == "skipped"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(PhotoError, match=r"a\.jpg: not a file"):
        read_photo(tmp_path / "a.jpg")


def test_an_empty_folder_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert "no photos to anonymise" in refusal(capsys, tmp_path / "in")
    assert not (tmp_path / "in_dartblur").exists()


def test_a_full_disk_leaves_no_part_of_a_photo(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the system ends a write half-way."""
    resource = pytest.importorskip("resource", reason="this system has no limits on files")
    kinds.pillow(picture(0))(tmp_path / "old.png")
    write_photo(tmp_path / "copy.png", picture(1))
    before = (tmp_path / "copy.png").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        for name in ("copy.png", "new.png"):
            with pytest.raises(PhotoError, match="cannot be written"):
                write_photo(tmp_path / name, picture(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_below(tmp_path) == {"old.png", "copy.png"}
    assert (tmp_path / "copy.png").read_bytes() == before


def without_roots_rights() -> list[str]:
    """Return what to put before a command, so that file modes hold for it as well."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has no file modes")
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("file modes do not hold for root, and setpriv cannot take its rights away")
    return prefix


def test_missing_rights_are_named(tmp_path: Path) -> None:
    prefix = without_roots_rights()
    folder, closed, fixed = tmp_path / "in", tmp_path / "closed", tmp_path / "fixed"
    for place in (folder, closed / "sub", fixed):
        place.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        kinds.pillow(picture(0))(folder / name)
        kinds.pillow(picture(0))(closed / name)
    labels = label_file(tmp_path / "label.txt", {"a.png": [], "b.png": []})
    program = "import sys, dartblur\nfor at in sys.argv[1:]:\n print(dartblur.main(at.split('|')))"
    options = ["--labels", str(labels), "--method", "black", "--output"]
    runs = [
        [str(folder), *options, str(tmp_path / "out")],
        [str(closed), *options, str(tmp_path / "none")],
        [str(folder), *options, str(fixed / "out")],
    ]
    (folder / "a.png").chmod(0)
    (closed / "sub").chmod(0)
    fixed.chmod(0o555)
    try:
        done = subprocess.run(
            [*prefix, sys.executable, "-c", program, *("|".join(one) for one in runs)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    finally:
        (closed / "sub").chmod(0o755)
        fixed.chmod(0o755)
    assert "Traceback" not in done.stderr
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["1", "2", "1"]
    assert f"{folder / 'a.png'}: cannot be read (Permission denied)" in done.stderr
    assert f"{closed / 'sub'}: cannot be listed (Permission denied)" in done.stderr
    assert f"Permission denied: '{fixed / 'out'}'" in done.stderr
    assert files_below(tmp_path / "out") == {"b.png", "manifest.jsonl"}
    assert not (tmp_path / "none").exists()
    assert not list(fixed.iterdir())
