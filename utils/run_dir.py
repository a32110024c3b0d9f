"""A training run on disk: its configuration, checkpoint and log; all of it survives a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml


class RunError(Exception):
    """A run directory that cannot be used; the message is one clear line."""


class RunDirectory:
    """`config.yaml`, `checkpoint.pt` and `stats.jsonl` of one run.

    `settings` are plain values (the recipe and the command-line choices) that `--resume`
    needs; a new run refuses a directory that holds one already.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings

    @classmethod
    def create(cls, path: Path, settings: dict[str, Any]) -> RunDirectory:
        """Start a run in an empty or new directory. Raises `RunError`."""
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: a file; name a new directory for the run")
        if path.exists() and any(path.iterdir()):
            raise RunError(f"{path}: not empty; continue it with --resume {path}, or name another")
        path.mkdir(parents=True, exist_ok=True)
        _replace(path / "config.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open a run to continue or export it. Raises `RunError`."""
        try:
            settings = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            settings = None
        if not isinstance(settings, dict) or not {"model", "config"} <= settings.keys():
            raise RunError(f"{path}: no run directory (it holds no config.yaml of a run)")
        return cls(path, settings)

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint: tensors and plain values only, moved into place when whole."""
        # One name for all: what a kill leaves of it is overwritten, not left lying about.
        temporary = self.path / ".checkpoint.pt.part"
        try:
            torch.save(state, temporary)
            os.replace(temporary, self.path / "checkpoint.pt")
        finally:
            temporary.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint on the CPU, None if the run has none yet. Raises `RunError`."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torch.load raises whatever the broken bytes lead it to
            raise RunError(f"{file}: not a checkpoint, or truncated") from None

    def log(self, **values: Any) -> None:
        """Append one line to `stats.jsonl`."""
        with (self.path / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def rewind_log(self, lines: int) -> None:
        """Drop what was logged after the checkpoint that is being resumed."""
        file = self.path / "stats.jsonl"
        if file.exists():
            kept = file.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
            _replace(file, "".join(kept).encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
