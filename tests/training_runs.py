"""Short runs of train.py on a tree of drawn pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = (
    "frame=64 batch_size=2 epochs=1 adversary_epochs=1 warm_start_steps=2 moment_warmup=1 "
    "checkpoint_every=8"
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


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def log_of(run: Path) -> list[dict[str, Any]]:
    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    lines = (run / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    return [{name: v for name, v in entry.items() if name != "seconds"} for entry in entries]
