"""Short runs of train.py on a tree of drawn pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.run_dir import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = (
    "frame=64 batch_size=2 epochs=1 adversary_epochs=1 warm_start_steps=2 moment_warmup=1 "
    "checkpoint_every=8 keep_checkpoints=2 pictures_every=9"
)
DETECTOR = "frame=64 batch_size=2 epochs=3 checkpoint_every=2"


def overrides(section: str, numbers: str) -> list[str]:
    return [word for text in numbers.split() for word in ("--set", f"{section}.{text}")]


@dataclass(frozen=True)
class Place:
    """Everything a run needs, in one folder."""

    folder: Path
    data: Path
    critic: Path

    def generator(self, run: Path, *more: object) -> list[object]:
        options = ["--data", self.data, "--critic", self.critic, "--run", run, "--threads", 1]
        return [*options, *overrides("train_generator", GENERATOR), *more]

    def detector(self, run: Path, *more: object) -> list[object]:
        options = ["--model", "detector", "--data", self.data, "--run", run, "--threads", 1]
        return [*options, *overrides("train_detector", DETECTOR), *more]


def started(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start train.py as a user does; `launcher`: a module, with options, that runs scripts."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def log_of(run: Path) -> list[dict[str, Any]]:
    """What `stats.jsonl` holds, but for the times."""

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    lines = (run / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    times = ("seconds", "waited")
    return [{name: v for name, v in entry.items() if name not in times} for entry in entries]


def newest(run: Path) -> dict[str, Any]:
    state = RunDirectory.open(run).load()
    assert state is not None
    return state


def files(folder: Path) -> dict[str, int]:
    """When each file below `folder` was last written, in nanoseconds."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def values_of(content: Any, name: str = "") -> dict[str, Any]:
    """The values of a checkpoint by their place in it."""
    if isinstance(content, dict):
        pairs = content.items()
    elif isinstance(content, list | tuple):
        pairs = enumerate(content)  # type: ignore[assignment]
    else:
        return {name: content}
    return {k: v for key, value in pairs for k, v in values_of(value, f"{name}/{key}").items()}


def assert_same(first: Any, second: Any) -> None:
    """Bit for bit, tensors and plain values, in whatever they are nested."""
    a, b = values_of(first), values_of(second)
    assert set(a) == set(b)
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


def assert_same_checkpoint(first: Path, second: Path) -> None:
    """All but the commit, which may change while the tests run."""
    states = [newest(first), newest(second)]
    for state in states:
        assert state["made_by"].pop("commit")
    assert_same(*states)
