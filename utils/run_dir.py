"""A training run on disk: its configuration, checkpoints and log; all of it survives a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class RunError(Exception):
    """A run directory that cannot be used; the message is one clear line."""


class RunDirectory:
    """`config.yaml`, `checkpoint-<step>.pt`, `best.json`, `stats.jsonl` and `tensorboard/`.

    `settings` are plain values (the recipe and the command-line choices) that `--resume`
    needs; a new run refuses a directory that holds one already. With `writes` False, as in
    all but the first of several processes, nothing is written.
    """

    def __init__(self, path: Path, settings: dict[str, Any], writes: bool = True) -> None:
        self.path = path
        self.settings = settings
        self.writes = writes
        self._board: SummaryWriter | None = None
        self._start = 0

    @classmethod
    def create(
        cls,
        path: Path,
        settings: dict[str, Any],
        writes: bool = True,
        state: dict[str, Any] | None = None,
    ) -> RunDirectory:
        """Start a run in an empty or new directory, from `state` if given. Raises `RunError`."""
        run = cls(path, settings, writes)
        if writes:
            if path.exists() and not path.is_dir():
                raise RunError(f"{path}: a file; name a new directory for the run")
            if path.exists() and any(path.iterdir()):
                raise RunError(
                    f"{path}: not empty; continue it with --resume {path}, or name another"
                )
            path.mkdir(parents=True, exist_ok=True)
            if state is not None:
                run.save(state, keep=1)
            # Last: what makes it a run is there only when all of it is.
            text = yaml.safe_dump(settings, sort_keys=False)
            _replace(path / "config.yaml", lambda file: file.write(text.encode()))
        return run

    @classmethod
    def open(cls, path: Path, writes: bool = True) -> RunDirectory:
        """Open a run to continue or export it. Raises `RunError`."""
        try:
            settings = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            settings = None
        if not isinstance(settings, dict) or not {"model", "config"} <= settings.keys():
            raise RunError(f"{path}: no run directory (it holds no config.yaml of a run)")
        return cls(path, settings, writes)

    def save(self, state: dict[str, Any], keep: int, loss: float | None = None) -> None:
        """Write the checkpoint of `state["step"]`, moved into place when whole.

        `state`: tensors and plain values. The newest `keep` are kept, and the best: the one
        with the lowest `loss`, the mean since the checkpoint before it, where there is one.
        """
        if not self.writes:
            return
        name = f"checkpoint-{state['step']:08d}.pt"
        _replace(self.path / name, lambda file: torch.save(state, file))
        best = self._read_best()
        if loss is not None and (best is None or loss <= best["loss"]):
            # After the checkpoint: a mark must not name a file that never came to be.
            best = {"file": name, "step": state["step"], "loss": loss}
            text = json.dumps(best)
            _replace(self.path / "best.json", lambda file: file.write(text.encode()))
        for file in self._checkpoints()[:-keep]:
            if best is None or file.name != best["file"]:
                file.unlink()
        if self._board is not None:
            self._board.flush()

    def load(self, best: bool = False) -> dict[str, Any] | None:
        """Return the newest checkpoint, or the best, on the CPU; None if the run has none yet.

        Raises `RunError`.
        """
        files = self._checkpoints()
        if best:
            marked = self._read_best()
            if marked is None:
                raise RunError(f"{self.path}: no checkpoint is marked as the best yet")
            files = [self.path / marked["file"]]
        if not files:
            return None
        try:
            return torch.load(files[-1], map_location="cpu", weights_only=True)
        except Exception:  # torch.load raises whatever the broken bytes lead it to
            raise RunError(
                f"{files[-1]}: not a checkpoint, or truncated; "
                f"delete it to go on from the one before"
            ) from None

    def log(self, **values: Any) -> None:
        """Append one line to `stats.jsonl` and draw its losses; `values` have a "step"."""
        if not self.writes:
            return
        with (self.path / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        kind = values.get("kind", "train")
        for name, value in values.items():
            if isinstance(value, float):
                self._tensorboard().add_scalar(f"{kind}/{name}", value, values["step"])

    def picture(self, pixels: Tensor, step: int) -> None:
        """Show uint8 [3, H, W] RGB in TensorBoard."""
        if self.writes:
            self._tensorboard().add_image("pictures", pixels, step)

    def rewind(self, step: int) -> None:
        """Forget what was logged, and marked as the best, after `step`."""
        self._start = step
        if not self.writes:
            return
        best = self._read_best()
        if best is not None and best["step"] > step:
            (self.path / "best.json").unlink()
        log = self.path / "stats.jsonl"
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            # A line that a kill cut short has no end, and belongs to a later step.
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step
            ]
            text = "".join(kept)
            _replace(log, lambda file: file.write(text.encode()))

    def _checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint-*.pt"))

    def _read_best(self) -> dict[str, Any] | None:
        file = self.path / "best.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def _tensorboard(self) -> SummaryWriter:
        if self._board is None:
            folder = str(self.path / "tensorboard")
            self._board = SummaryWriter(folder, purge_step=self._start + 1)
        return self._board


def _replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    # One temporary name for all: what a kill leaves of it is overwritten, not left lying about.
    temporary = path.with_name(f".{path.name.partition('-')[0]}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the place of an older one
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
