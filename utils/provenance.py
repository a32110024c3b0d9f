"""Where a result comes from: the command, the code, the machine and the versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision

ROOT = Path(__file__).resolve().parents[1]


def provenance(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Describe this run in plain values, fit for JSON.

    Keys: `command`, `commit` (see `git_commit`), `date` (UTC, ISO 8601), `machine` (`cpu`,
    `cores`, `threads` of PyTorch, `gpus`), `system`, `versions` by package. `packages` names
    further installed distributions whose versions matter. Neither host nor user is named.
    """
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    versions |= {name: importlib.metadata.version(name) for name in packages}
    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [
                torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
            ],
        },
        "system": platform.platform(),
        "versions": versions,
    }


def path_text(path: Path) -> str:
    """A path for the results: the project's own files without the folder it lies in."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else path)


def file_digest(path: Path) -> str:
    """What a file holds, in sixteen letters of SHA-256: its name may change."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def git_commit(root: Path = ROOT) -> str:
    """The commit that `root` has checked out, "-dirty" after it where tracked files differ.

    "unknown" where `root` is no checkout of its own or git is not installed.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    # A copy of the code that lies in some other repository is no checkout of this one.
    if top is None or Path(top).resolve() != root.resolve():
        return "unknown"
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return "unknown"
    return f"{commit}-dirty" if changes else commit


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails."""
    # Set inside hooks, they would point git at another repository.
    misleading = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env={name: value for name, value in os.environ.items() if name not in misleading},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_model() -> str:
    """The processor's name, as far as the system tells; its architecture otherwise."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
