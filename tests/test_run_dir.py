from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

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


def test_a_run_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    run = RunDirectory.create(path, SETTINGS)
    assert run.load() is None
    state = {"weights": {"a": torch.arange(6.0).view(2, 3)}, "step": 3, "lr": [0.1]}
    run.save({"step": 1})
    run.save(state)
    assert files(path) == {"config.yaml", "checkpoint.pt"}

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


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_broken_checkpoints_are_refused(tmp_path: Path, share: float) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.save({"weights": torch.zeros(1000)})
    file = tmp_path / "checkpoint.pt"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="truncated"):
        run.load()


def test_a_checkpoint_that_could_not_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.save({"step": 1})

    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(utils.run_dir.torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        run.save({"step": 2})
    assert files(tmp_path) == {"config.yaml", "checkpoint.pt"}
    assert run.load() == {"step": 1}


def test_log_and_its_rewinding(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.rewind_log(0)  # nothing logged yet
    for step in range(5):
        run.log(step=step, loss=0.1 * step, kind="warm")
    run.rewind_log(3)
    run.log(step=3, loss=None, kind="again")
    lines = (tmp_path / "stats.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3]
    assert entries[1] == {"step": 1, "loss": 0.1, "kind": "warm"}
    assert entries[3]["kind"] == "again"
    assert files(tmp_path) == {"config.yaml", "stats.jsonl"}
    run.rewind_log(100)
    assert (tmp_path / "stats.jsonl").read_text().splitlines() == lines


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, SETTINGS)
    run.log(step=1)
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run.rewind_log(1)
    run.log(step=2)
    entries = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2]
