"""train.py --dry-run: what it reports, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.training_runs import Place, files, overrides


def test_report_on_a_generator(
    place: Place,
    finished: Path,
    run_path: Path,
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=87_600_000_000))
    before = files(place.folder)
    # Phase (a) is of one epoch, of 100 in all.
    more = ["--dry-run", *overrides("train_generator", "epochs=100")]
    assert main(*place.generator(run_path, *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 photos, 4 batches of 2 an epoch, 1 process(es), cpu"
    steps = [re.fullmatch(r" *(\w+): ([\d,]+) steps of (\d+\.\d\d) s", line) for line in lines[1:5]]
    counts = [(match[1], match[2]) for match in steps if match]
    assert counts == [
        ("warm", "2"),
        ("adversary", "400"),
        ("moments", "1"),
        ("generator", "400"),
    ]
    size = (finished / "checkpoint-00000011.pt").stat().st_size
    # Two are kept, the best beside them, and one is being written.
    space = re.fullmatch(r"checkpoints: up to (.*) MB of 87.6 GB that are free", lines[5])
    assert space is not None
    assert float(space[1]) == pytest.approx(4 * size / 1e6, rel=0.03)
    seconds = sum(int(m[2].replace(",", "")) * float(m[3]) for m in steps if m)
    time = re.fullmatch(r"estimated time: (\d+) h (\d\d) min", lines[6])
    assert time is not None
    assert int(time[1]) * 60 + int(time[2]) == pytest.approx(seconds / 60, abs=1)
    assert len(lines) == 7
    assert not run_path.exists()
    assert files(place.folder) == before


def test_report_on_a_detector_and_its_continuation(
    place: Place, run_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*place.detector(run_path, "--dry-run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 photos, 4 batches of 2 an epoch, 1 process(es), cpu"
    assert re.match(r" *detector: 12 steps of ", lines[1])
    assert not run_path.exists()

    assert main(*place.detector(run_path)) == 0
    (run_path / "checkpoint-00000012.pt").unlink()
    before = files(run_path)
    for left in (2, 0):
        capsys.readouterr()
        assert main("--resume", run_path, "--dry-run") == 0
        report = capsys.readouterr().out
        assert files(run_path) == before
        assert (f"detector: {left} steps of " in report) == (left > 0)
        assert "estimated time: 0 h 00 min" in report
        assert main("--resume", run_path) == 0
        before = files(run_path)


def test_report_on_a_run_in_the_generators_pass(
    finished: Path, run_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run_path.mkdir()
    for name in ("config.yaml", "checkpoint-00000008.pt"):
        shutil.copy(finished / name, run_path)
    before = files(run_path)
    assert main("--resume", run_path, "--dry-run") == 0
    report = capsys.readouterr().out
    assert report.count("steps of") == 1
    assert "generator: 3 steps of" in report
    assert files(run_path) == before


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    line = captured.err.splitlines()[-1]
    assert line.startswith("train.py: ")
    return line


@pytest.mark.parametrize("model", ["generator", "detector"])
@pytest.mark.parametrize("folder", ["images", "images_G2_M80"])
@pytest.mark.parametrize("fault", ["missing", "a page that says no"])
def test_photos_that_are_none(
    place: Place,
    run_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    model: str,
    folder: str,
    fault: str,
) -> None:
    """Also the last of them, and the blurred copies where the model reads them."""
    data = shutil.copytree(place.data, run_path.parent / "data")
    photo = data / "train" / folder / "event" / "7.jpg"
    photo.unlink() if fault == "missing" else photo.write_text(f"<html>{fault}</html>")
    start = place.generator if model == "generator" else place.detector
    arguments = start(run_path, "--dry-run", "--data", data)
    if (model, folder) == ("detector", "images_G2_M80"):
        assert main(*arguments) == 0
        arguments += ["--images", folder]
        capsys.readouterr()
    assert main(*arguments) == 1
    words = "1 of 8 photos" if fault == "missing" else f"{photo}: not a picture"
    assert words in refusal(capsys)
    assert not run_path.exists()


def test_a_disk_that_is_too_small(
    place: Place,
    run_path: Path,
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the run would lie, though nothing of its path exists yet."""
    path = run_path / "not" / "yet"
    size = 3 * 4 * 433_343  # the network in float32, and two moments of it

    def dry_run(keep: int, free: int) -> int:
        def usage(folder: Path) -> SimpleNamespace:
            assert folder == run_path.parent
            return SimpleNamespace(free=free)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        numbers = overrides("train_detector", f"keep_checkpoints={keep}")
        return main(*place.detector(path, "--dry-run", *numbers))

    assert dry_run(keep=3, free=5 * size) == 0
    capsys.readouterr()
    assert dry_run(keep=4, free=5 * size) == 1
    line = refusal(capsys)
    assert f"{path}: checkpoints need 3" in line
    assert f"MB, {5 * size / 1e6:.1f} MB are free; lower keep_checkpoints or name" in line
    assert not run_path.exists()


def test_batches_without_a_face(
    place: Place, run_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames that show a twentieth of the photo miss its faces."""
    options = ["--dry-run", *overrides("train_generator", "scale=[20.0,20.0]")]
    assert main(*place.generator(run_path, *options)) == 1
    assert "no face is left in the batches tried; raise placements" in refusal(capsys)
