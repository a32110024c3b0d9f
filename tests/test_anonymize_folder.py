"""Whole runs of dartblur.py: in worker processes, stopped in every way, and started again."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import utils.image_files
import utils.manifest
from models.weights import GENERATOR
from tests.photo_folders import (
    LABELS,
    blind_detector,
    contents,
    files_below,
    label_file,
    make_folder,
    manifest,
    picture,
    run,
)
from utils.image_files import read_photo, write_photo

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "img" / "samples"

posix_only = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_detector(tmp_path_factory.mktemp("weights") / "blind.safetensors")


def mixed_folder(folder: Path) -> Path:
    """Real photos, turned and cut, and noise; some without a face, and one that is broken."""
    labels: dict[str, list[str]] = {}
    for name, face in (("eileen_collins", "180 70 90 110"), ("grace_hopper", "195 150 135 170")):
        pixels = read_photo(SAMPLES / f"{name}.jpg").pixels
        x, y, w, h = map(int, face.split())
        for cut in (0, 40):
            path = f"real/{name} {cut}.jpg"
            write_photo(folder / path, pixels[cut:, cut:])
            labels[path] = [f"{x - cut} {y - cut} {w} {h}"]
    for number in range(8):
        path = f"noise/{number}.{'png' if number % 2 else 'jpg'}"
        write_photo(folder / path, picture(number, 300, 400))
        labels[path] = [f"{20 + number} 30 120 90", "200 100 60 80"][: number % 3]
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    labels["broken.jpg"] = ["1 2 3 4"]
    return label_file(folder.with_name("label.txt"), labels)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "dartblur.py"), *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def same_end(one: Path, other: Path) -> None:
    """The same files, pixels within one level, and the same manifest."""
    assert files_below(one) == files_below(other)
    for name in files_below(one) - {"manifest.jsonl"}:
        first, second = (read_photo(folder / name).pixels.astype(int) for folder in (one, other))
        assert np.abs(first - second).max() <= 1
    assert (one / "manifest.jsonl").read_text() == (other / "manifest.jsonl").read_text()


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_do_what_one_process_does(tmp_path: Path) -> None:
    labels = mixed_folder(tmp_path / "in")
    options = (tmp_path / "in", "--labels", labels)
    before = contents(tmp_path / "in")
    assert run(*options, "--output", tmp_path / "one") == 1
    assert run(*options, "--output", tmp_path / "many", workers=3) == 1
    same_end(tmp_path / "one", tmp_path / "many")
    assert contents(tmp_path / "in") == before
    entries = manifest(tmp_path / "many")
    assert [name for name, entry in entries.items() if entry["status"] == "failed"] == [
        "broken.jpg"
    ]
    assert sum(entry["faces"] for entry in entries.values()) == 4 + 7


@posix_only
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_goes_on(tmp_path: Path, seed: int) -> None:
    """kill -9 at random moments, again and again, until a run comes to its end."""
    labels = mixed_folder(tmp_path / "in")
    options = (tmp_path / "in", "--labels", labels, "--method", "gaussian", "--workers", 2)
    output = tmp_path / "killed"
    randoms = random.Random(seed)
    codes = []
    for _ in range(40):
        process = start(*options, "--output", output)
        # From the first copy on, when there is one: most of the time goes into starting up.
        copies = len(list(output.rglob("*.*g"))) + randoms.randrange(4)
        limit = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < limit:
            if len(list(output.rglob("*.*g"))) > copies:
                time.sleep(randoms.uniform(0, 0.03))
                break
            time.sleep(0.001)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        limit = time.monotonic() + 30
        while alive(process.pid) and time.monotonic() < limit:
            time.sleep(0.01)
        assert not alive(process.pid), "workers outlive their parent"
        codes.append(process.returncode)
        if process.returncode >= 0:
            break
        # What bears a final name is whole.
        for name in files_below(output):
            if not name.startswith("manifest") and "/." not in name and not name.startswith("."):
                read_photo(output / name)
    assert codes[-1] == 1  # broken.jpg
    assert len(codes) > 1
    assert set(codes[:-1]) <= {-signal.SIGKILL}
    assert run(*options[:-2], "--output", tmp_path / "whole") == 1
    same_end(tmp_path / "whole", output)


@posix_only
def test_a_killed_run_of_the_generator_goes_on(tmp_path: Path) -> None:
    labels = mixed_folder(tmp_path / "in")
    options = (tmp_path / "in", "--labels", labels)
    output = tmp_path / "killed"
    process = start(*options, "--output", output)
    limit = time.monotonic() + 100
    while not list(output.rglob("*.*g")) and time.monotonic() < limit:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    there = {path: path.stat().st_mtime_ns for path in output.rglob("*.*g")}
    assert 1 <= len(there) < 12
    (output / "noise").mkdir(exist_ok=True)
    (output / "noise" / f".{'0' * 32}.tmp").write_bytes(b"half")
    assert run(*options, "--output", output) == 1
    # A copy may have been in place before its line was.
    kept = [path for path, when in there.items() if path.stat().st_mtime_ns == when]
    assert len(kept) >= len(there) - 2
    assert run(*options, "--output", tmp_path / "whole") == 1
    same_end(tmp_path / "whole", output)


@posix_only
def test_ctrl_c_ends_a_run_with_its_summary(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    write_photo(folder / "0.jpg", picture(0, 600, 800))
    for number in range(1, 600):
        os.link(folder / "0.jpg", folder / f"{number}.jpg")
    labels = label_file(tmp_path / "label.txt", {f"{n}.jpg": ["10 20 300 400"] for n in range(600)})
    options = (folder, "--labels", labels, "--method", "gaussian", "--output", output)
    process = start(*options, "--workers", 2)
    while process.poll() is None and not list(output.glob("*.jpg")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    copies = files_below(output) - {"manifest.jsonl"}
    entries = manifest(output)
    assert entries.keys() == copies
    assert 0 < len(copies) < 600
    assert stdout.startswith(f"{len(copies)} photos written, {len(copies)} faces hidden, 0 fail")
    last = stderr.splitlines()[-1]
    assert last == f"dartblur.py: interrupted, {600 - len(copies)} photos left"


@posix_only
def test_a_worker_that_dies_costs_one_photo(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    names = {f"{number}.png": ["10 20 300 400"] for number in range(40)}
    for number, name in enumerate(names):
        write_photo(folder / name, picture(number, 500, 500))
    labels = label_file(tmp_path / "label.txt", names)
    killed = []

    def kill_one() -> None:
        while not list(output.glob("*.png")):
            time.sleep(0.002)
        for process in multiprocessing.active_children()[:1]:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    options = (folder, "--labels", labels, "--method", "gaussian", "--output", output)
    code = run(*options, workers=2)
    killer.join()
    assert len(killed) == 1
    entries = manifest(output)
    assert entries.keys() == names.keys()
    failed = [entry for entry in entries.values() if entry["status"] == "failed"]
    assert len(failed) == code <= 1  # none if it died between two photos
    for entry in failed:
        assert entry["error"].endswith("the process that worked on it was ended by SIGKILL")
        assert not (output / entry["path"]).exists()
    assert run(*options, workers=2) == 0
    assert files_below(output) == {*names, "manifest.jsonl"}


@posix_only
def test_a_pipe_costs_itself_alone(tmp_path: Path) -> None:
    """Whoever reads a named pipe waits for ever, so none is opened."""
    labels = make_folder(tmp_path / "in", {**LABELS, "e2/d.jpg": ["1 2 30 40"]})
    (tmp_path / "in" / "e2" / "c.jpg").unlink()
    os.mkfifo(tmp_path / "in" / "e2" / "c.jpg")
    options = ("--labels", labels, "--method", "black")
    assert run(tmp_path / "in", *options, workers=2) == 1
    entries = manifest(tmp_path / "in_black")
    failed = [name for name, entry in entries.items() if entry["status"] == "failed"]
    assert failed == ["e2/c.jpg"]
    assert files_below(tmp_path / "in_black") == {
        *(name for name in LABELS if name != "e2/c.jpg"),
        "e2/d.jpg",
        "manifest.jsonl",
    }


@pytest.mark.parametrize("where", ["copy", "manifest"])
def test_a_full_disk_ends_the_run_with_one_line(
    tmp_path: Path,
    where: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {f"{number}.png": ["10 20 30 40"] for number in range(9)}
    labels = make_folder(tmp_path / "in", names)
    options = (tmp_path / "in", "--labels", labels, "--method", "black")
    left = 4
    real: Callable[..., Any] = os.fsync if where == "copy" else utils.manifest.Manifest.add

    def full(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    if where == "copy":
        monkeypatch.setattr(utils.image_files.os, "fsync", full)
    else:
        monkeypatch.setattr(utils.manifest.Manifest, "add", full)
    assert run(*options) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("dartblur.py: ")]
    assert len(lines) == 1
    assert "failed, no output" not in captured.err
    assert "isk is full" in lines[0] or "No space left" in lines[0]
    monkeypatch.undo()
    assert run(*options) == 0
    # The manifest had no line for the copy that was made when the disk was full.
    done = 4
    assert f"{9 - done} photos written, " in capsys.readouterr().out
    assert run(*options, "--output", tmp_path / "whole") == 0
    same_end(tmp_path / "whole", tmp_path / "in_black")


def test_what_is_done_is_done_anew_only_where_something_changed(
    tmp_path: Path, blind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    names = {"a.png": ["10 20 30 40"], "b.png": ["1 2 30 40"], "c.png": []}
    labels = make_folder(folder, names)
    write_photo(folder / "d.jpg", picture(7))
    detector = ("--boxes", "detect-missing", "--detector", blind)
    options = (folder, "--labels", labels, *detector, "--method", "black")

    def done_again(*more: object) -> tuple[set[str], str]:
        before = {name: (output / name).stat().st_mtime_ns for name in files_below(output)}
        assert run(*options, *more) == 0
        after = {name: (output / name).stat().st_mtime_ns for name in files_below(output)}
        assert after.keys() - {"manifest.jsonl"} == {"a.png", "b.png", "c.png", "d.jpg"}
        changed = {name for name in after if after[name] != before.get(name)}
        err = capsys.readouterr().err
        said = [line for line in err.splitlines() if line.startswith("settings changed")]
        return changed - {"manifest.jsonl"}, "".join(said)

    output.mkdir()
    assert done_again()[0] == {"a.png", "b.png", "c.png", "d.jpg"}
    assert done_again() == (set(), "")
    write_photo(folder / "a.png", picture(8))
    assert done_again() == ({"a.png"}, "")
    (output / "b.png").unlink()
    assert done_again() == ({"b.png"}, "")
    (output / "b.png").write_bytes(b"?")
    assert done_again() == ({"b.png"}, "")
    label_file(labels, {**names, "b.png": ["1 2 30 41"]})
    changed, said = done_again()
    assert changed == {"b.png"}
    assert "(labels): 1 photos are done anew" in said
    changed, said = done_again("--score", "0.9")
    assert changed == {"d.jpg"}
    assert "(detector): 1 photos are done anew" in said
    changed, said = done_again("--score", "0.9", "--jpeg-quality", "70")
    assert changed == {"a.png", "b.png", "c.png", "d.jpg"}
    assert "(output): 4 photos are done anew" in said
    assert done_again("--score", "0.9", "--jpeg-quality", "70") == (set(), "")


@pytest.mark.parametrize(("choice", "code"), [("copy", 0), ("skip", 0), ("fail", 1)])
def test_photos_without_a_face(
    tmp_path: Path, choice: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = make_folder(tmp_path / "in")
    options = (tmp_path / "in", "--labels", labels, "--method", "black")
    assert run(*options) == 0
    capsys.readouterr()
    assert run(*options, "--on-no-face", choice) == code
    captured = capsys.readouterr()
    output = tmp_path / "in_black"
    entry = manifest(output)["e 1/none.png"]
    assert (output / "e 1" / "none.png").exists() == (choice == "copy")
    if choice == "copy":
        assert "4 done before" in captured.out
        return
    assert "(on_no_face): 1 photos are done anew" in captured.err
    assert entry["output"] is None
    if choice == "skip":
        assert (entry["status"], entry["flags"]) == ("skipped", ["no_face"])
        assert "1 without a face passed over, 3 done before" in captured.out
    else:
        assert "none.png: no face in it (--on-no-face fail)" in captured.err
    assert run(*options, "--on-no-face", choice) == code
    again = "4 done before" if choice == "skip" else "1 failures, 3 done before"
    assert again in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = mixed_folder(tmp_path / "in")
    before = contents(tmp_path)
    options = (tmp_path / "in", "--labels", labels, "--dry-run")
    assert run(*options) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(
        "dry run, nothing written: 13 photos, 11 faces, 3 photos without a face, "
        "1 would fail, 0 done before; the rest takes about "
    )
    assert f"would fail: {tmp_path / 'in' / 'broken.jpg'}" in captured.err
    assert run(*options, "--json") == 1
    *photos, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(photos) == 13
    assert last["summary"]["faces"] == 11
    assert last["summary"]["estimated_seconds"] > 0
    assert contents(tmp_path) == before


def test_a_dry_run_detects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--output", tmp_path / "out", "--method", "black", "--score", "0.9")
    assert run(SAMPLES, *options, "--dry-run") == 0
    assert "2 photos, 2 faces, 0 photos without a face" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_json_and_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = make_folder(tmp_path / "in")
    (tmp_path / "in" / "film.mp4").touch()
    (tmp_path / "in" / "a.png").write_bytes(b"?")
    options = (tmp_path / "in", "--labels", labels, "--method", "black")
    assert run(*options, "--json") == 1
    captured = capsys.readouterr()
    *photos, last = [json.loads(line) for line in captured.out.splitlines()]
    entries = manifest(tmp_path / "in_black")
    assert {photo["path"]: photo for photo in photos} == {
        name: entry for name, entry in entries.items() if name != "film.mp4"
    }
    assert last["summary"]["photos"] == 4
    assert last["summary"]["written"] == 3
    assert last["summary"]["skipped"] == 1
    assert "photos/s" in captured.err
    assert run(*options, "--quiet") == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("0 photos written, 0 faces hidden, 1 failures, 3 done before")
    (line,) = captured.err.splitlines()
    assert line.startswith("failed, no output: ")
    assert "a.png" in line


def test_what_is_in_the_same_call_does_not_matter(tmp_path: Path) -> None:
    """A photo alone, and one among others, differ by a grey level at most."""
    labels = mixed_folder(tmp_path / "in")
    options = ("--labels", labels, "--weights", GENERATOR)
    assert run(tmp_path / "in", *options, "--output", tmp_path / "all", workers=2) == 1
    for name in ("real/eileen_collins 0.jpg", "noise/5.png"):
        alone = tmp_path / "alone"
        write_photo(alone / "in" / "x.png", read_photo(tmp_path / "in" / name).pixels)
        rows = [
            " ".join(f"{number:g}" for number in box)
            for box in manifest(tmp_path / "all")[name]["boxes"]
        ]
        alone_labels = label_file(alone / "label.txt", {"x.png": rows})
        assert run(alone / "in", "--labels", alone_labels) == 0
        one = read_photo(alone / "in_dartblur" / "x.png").pixels.astype(int)
        among = read_photo(tmp_path / "all" / name).pixels.astype(int)
        if name.endswith("png"):
            assert np.abs(one - among).max() <= 1


def test_worker_processes_import_no_pytorch() -> None:
    """They import the script and what it does with a photo; PyTorch would cost each 200 MB."""
    script = "import dartblur, gaussblur, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
