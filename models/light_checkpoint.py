"""Light checkpoints: a run in one small file, to carry it to another machine.

Parameters are float16 and the optimizers' moments are left out; a resumed run fills them first
by steps that change nothing else (`Training.rewarm_plan`). Buffers, and the critic that the
others are measured by, stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.weights import WeightsError, write_safetensors
from utils.run_dir import RunDirectory, RunError

NETWORKS = ("generator", "adversary", "critic", "detector")
ENTRY = "dartblur_run"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def write_light(run: RunDirectory, path: Path) -> None:
    """Write the newest checkpoint of `run` as a light one. Raises `RunError`, `WeightsError`."""
    state = run.load()
    if state is None:
        raise RunError(f"{run.path}: no checkpoint yet")
    tensors: dict[str, Tensor] = {}
    for network in NETWORKS:
        for name, value in state.get(network, {}).items():
            exact = network == "critic" or name.endswith(BUFFERS)
            small = value.is_floating_point() and not exact
            tensors[f"{network}.{name}"] = value.half() if small else value
    names = ("pass", "batch", "step", "photos", "made_by", "scheduler")
    position = {name: state[name] for name in names if name in state}
    content = {"settings": run.settings, "state": position}
    write_safetensors(tensors, path, {ENTRY: json.dumps(content)})


def read_light(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the run, and its state for `Training.load` with the critic's beside it.

    Raises `WeightsError` for a file that is no light checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})[ENTRY])
            settings, state = content["settings"], dict(content["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a file is no dict
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
        raise WeightsError(f"{path}: not a light checkpoint of train.py --light") from None
    for name, value in tensors.items():
        network, _, parameter = name.partition(".")
        small = value.dtype == torch.float16
        state.setdefault(network, {})[parameter] = value.float() if small else value
    return settings, {**state, "light": True}
