"""Jobs in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from utils.jobs import JobError, run_jobs
from utils.run_dir import RunError


def write_down(folder: Path, name: str) -> None:
    """Leave who did it; some names stand for an accident."""
    if name == "refuse":
        raise RunError("a clear line")
    if name == "die":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    if name == "wait":
        time.sleep(60)
    (folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")


def test_one_at_a_time_runs_here(tmp_path: Path) -> None:
    run_jobs(write_down, [(tmp_path, "a"), (tmp_path, "b")], 1)
    assert {file.read_text().split()[0] for file in tmp_path.iterdir()} == {str(os.getpid())}


def test_several_at_a_time_run_elsewhere_and_the_first_error_ends_them(tmp_path: Path) -> None:
    jobs = [(tmp_path, name) for name in ("a", "wait", "b", "refuse", "never")]
    started = time.monotonic()
    with pytest.raises(RunError, match="a clear line") as caught:
        run_jobs(write_down, jobs, 2)
    assert time.monotonic() - started < 50  # "wait" was ended
    assert "in write_down" in str(caught.value.__cause__)
    assert {file.name for file in tmp_path.iterdir()} == {"a", "b"}
    (words,) = {file.read_text() for file in tmp_path.iterdir()}  # one process did both
    pid, threads = words.split()
    assert int(pid) != os.getpid()
    assert threads == "1"


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_process_that_dies_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"died \(exit code -15\).*fewer --jobs"):
        run_jobs(write_down, [(tmp_path, "die")], 2)
