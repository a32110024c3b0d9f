from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import utils.run_dir
from utils.run_dir import RunDirectory, RunError

SETTINGS = {"model": "detector", "data": None, "config": {"blur": {"kernel_factor": 0.5}}}


def refusal(call: Any, path: Path) -> str:
    with pytest.raises(RunError) as caught:
        call(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def files(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def checkpoints(path: Path) -> list[int]:
    """The steps of the checkpoints on disk."""
    return sorted(int(file.stem.partition("-")[2]) for file in path.glob("*.pt"))


def full_disk(_state: Any, file: Any) -> None:
    """Stands in for torch.save."""
    file.write(b"half of it")
    raise OSError("no space left")


def test_a_run_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    run = RunDirectory.create(path, SETTINGS)
    assert run.load() is None
    state = {"weights": {"a": torch.arange(6.0).view(2, 3)}, "step": 3, "lr": [0.1]}
    run.save({"step": 1}, keep=1)
    run.save(state, keep=1)
    assert files(path) == {"config.yaml", "checkpoint-00000003.pt"}

    opened = RunDirectory.open(path)
    assert opened.settings == SETTINGS
    loaded = opened.load()
    assert loaded is not None
    assert torch.equal(loaded["weights"].pop("a"), state["weights"]["a"])  # type: ignore[index]
    assert loaded == {"weights": {}, "step": 3, "lr": [0.1]}


def test_an_empty_directory_may_be_taken(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, SETTINGS)
    assert files(tmp_path) == {"config.yaml"}


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"--resume {tmp_path}" in refusal(lambda p: RunDirectory.create(p, SETTINGS), tmp_path)
    assert files(tmp_path) == {"file"}
    refusal(lambda p: RunDirectory.create(p, SETTINGS), tmp_path / "file")


@pytest.mark.parametrize("content", [None, b"a: [", b"\xff\xfe", b"- 1", b"", b"blur: {}\n"])
def test_what_is_no_run_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    assert "no run directory" in refusal(RunDirectory.open, tmp_path)
    assert "no run directory" in refusal(RunDirectory.open, tmp_path / "nowhere")


def test_a_run_may_start_from_a_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS, state={"step": 41, "light": True})
    assert files(tmp_path) == {"config.yaml", "checkpoint-00000041.pt"}
    assert run.load() == {"step": 41, "light": True}


def test_it_is_no_run_before_that_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `--resume` would begin anew what was meant to go on."""
    with monkeypatch.context() as patch:
        patch.setattr(utils.run_dir.torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            RunDirectory.create(tmp_path / "run", SETTINGS, state={"step": 41})
    assert files(tmp_path / "run") == set()
    RunDirectory.create(tmp_path / "run", SETTINGS, state={"step": 41})  # there is room again


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_broken_checkpoints_are_refused(tmp_path: Path, share: float) -> None:
    """What the message advises must lead out of it."""
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.save({"step": 8}, keep=2)
    run.save({"weights": torch.zeros(1000), "step": 9}, keep=2)
    file = tmp_path / "checkpoint-00000009.pt"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    message = refusal(lambda _: run.load(), file)
    assert "truncated" in message
    assert "delete it to go on from the one before" in message
    file.unlink()
    assert run.load() == {"step": 8}


def test_a_checkpoint_that_could_not_be_written_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.save({"step": 1}, keep=1, loss=3.0)
    before = files(tmp_path)
    assert before == {"config.yaml", "checkpoint-00000001.pt", "best.json"}
    with monkeypatch.context() as patch:
        patch.setattr(utils.run_dir.torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            run.save({"step": 2}, keep=1, loss=2.0)
    assert files(tmp_path) == before
    assert run.load() == {"step": 1}
    assert run.load(best=True) == {"step": 1}  # the mark does not name what is not there


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    for step in (5, 90, 100, 2000, 12345678):
        run.save({"step": step}, keep)
    assert checkpoints(tmp_path) == [5, 90, 100, 2000, 12345678][-keep:]
    assert run.load() == {"step": 12345678}
    assert files(tmp_path) == {"config.yaml", *(file.name for file in tmp_path.glob("*.pt"))}
    with pytest.raises(RunError, match="no checkpoint is marked as the best"):
        run.load(best=True)


def test_the_best_checkpoint_is_marked_and_survives(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    losses = {1: 5.0, 2: 4.0, 3: 4.5, 4: None, 5: 6.0, 6: 4.1}
    for step, loss in losses.items():
        run.save({"step": step}, keep=2, loss=loss)
    assert checkpoints(tmp_path) == [2, 5, 6]
    assert run.load() == {"step": 6}
    # Another process finds the same.
    assert RunDirectory.open(tmp_path).load(best=True) == {"step": 2}
    mark = json.loads((tmp_path / "best.json").read_text())
    assert mark == {"file": "checkpoint-00000002.pt", "step": 2, "loss": 4.0}

    run.save({"step": 7}, keep=2, loss=4.0)  # of equals the later, which has trained longer
    assert run.load(best=True) == {"step": 7}
    assert checkpoints(tmp_path) == [6, 7]
    run.save({"step": 8}, keep=1, loss=3.9)
    assert run.load(best=True) == {"step": 8}
    assert checkpoints(tmp_path) == [8]


def test_log_and_its_rewinding(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.rewind(0)  # nothing logged yet
    for step in range(5):
        run.log(step=step, loss=0.1 * step, kind="warm")
    run.rewind(2)
    run.log(step=3, loss=None, kind="again")
    lines = (tmp_path / "stats.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3]
    assert entries[1] == {"step": 1, "loss": 0.1, "kind": "warm"}
    assert entries[3]["kind"] == "again"
    assert files(tmp_path) == {"config.yaml", "stats.jsonl", "tensorboard"}
    run.rewind(100)
    assert (tmp_path / "stats.jsonl").read_text().splitlines() == lines


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.log(step=1)
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run.rewind(1)
    run.log(step=2)
    entries = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2]


def test_rewinding_forgets_a_best_mark_that_lies_ahead(tmp_path: Path) -> None:
    """Its checkpoint was unreadable, and the user deleted it as advised."""
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.save({"step": 4}, keep=3, loss=2.0)
    run.rewind(4)
    assert run.load(best=True) == {"step": 4}
    run.save({"step": 8}, keep=3, loss=1.0)
    (tmp_path / "checkpoint-00000008.pt").unlink()
    run.rewind(4)
    with pytest.raises(RunError, match="no checkpoint is marked"):
        run.load(best=True)
    run.save({"step": 8}, keep=3, loss=1.5)  # worse than the forgotten one
    assert run.load(best=True) == {"step": 8}


def test_all_but_the_first_process_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    silent = RunDirectory.create(path, SETTINGS, writes=False, state={"step": 1})
    assert not path.exists()
    RunDirectory.create(path, SETTINGS, state={"step": 1}).save({"step": 2}, keep=2, loss=1.0)
    (path / "stats.jsonl").write_text('{"step": 2}\n{"step": 3}\n')
    before = {file: file.read_bytes() for file in path.rglob("*")}
    for run in (silent, RunDirectory.open(path, writes=False)):
        run.rewind(1)
        run.log(step=2, loss=0.5, kind="generator")
        run.picture(torch.zeros(3, 8, 8, dtype=torch.uint8), 2)
        run.save({"step": 3}, keep=1, loss=0.1)
        assert run.load() == run.load(best=True) == {"step": 2}  # reading is allowed
    assert {file: file.read_bytes() for file in path.rglob("*")} == before


def test_tensorboard_shows_losses_and_pictures(tmp_path: Path) -> None:
    pixels = torch.arange(3 * 16 * 20).remainder(256).byte().view(3, 16, 20)
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.rewind(0)
    for step in range(1, 6):
        run.log(step=step, kind="generator", epoch=0, loss=0.5 * step, post=-1.0)
    run.log(step=6, kind="adversary", adversary=0.25)
    run.picture(pixels, 3)
    run.save({"step": 6}, keep=1)  # what is drawn is on disk when its checkpoint is

    def read() -> EventAccumulator:
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return events

    events = read()
    # Scalars have their kind before them; counts are no curves.
    assert set(events.Tags()["scalars"]) == {
        "generator/loss",
        "generator/post",
        "adversary/adversary",
    }
    values = [(event.step, event.value) for event in events.Scalars("generator/loss")]
    assert values == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0), (5, 2.5)]
    assert [event.value for event in events.Scalars("adversary/adversary")] == [0.25]
    (picture,) = events.Images("pictures")
    assert (picture.step, picture.height, picture.width) == (3, 16, 20)
    decoded = np.asarray(Image.open(BytesIO(picture.encoded_image_string)))
    np.testing.assert_array_equal(decoded, pixels.permute(1, 2, 0).numpy())

    # A resumed run draws its own curve from where it starts.
    again = RunDirectory.open(tmp_path)
    again.rewind(3)
    again.log(step=4, kind="generator", loss=9.0)
    again.save({"step": 7}, keep=1)
    values = [(event.step, event.value) for event in read().Scalars("generator/loss")]
    assert values == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 9.0)]
