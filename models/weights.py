"""Weight files: read without executing pickled code, written as safetensors."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent / "weights"
DETECTOR = FOLDER / "retinaface_mobilenet0.25.safetensors"
GENERATOR = FOLDER / "dartblur_generator.safetensors"


class WeightsError(Exception):
    """A weight file that cannot be used; the message is one line that names the file."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors` or a PyTorch file onto the CPU.

    PyTorch files are read with `weights_only`, so no code in them runs. A `state_dict`
    entry is unwrapped and DataParallel's `module.` prefix dropped. Floating-point tensors
    come back as float32. Raises `WeightsError`.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weight file") from None
    except (SafetensorError, OSError):
        raise WeightsError(f"{path}: not a safetensors file, or truncated") from None
    except Exception:  # torch.load raises whatever the broken bytes lead it to
        raise WeightsError(f"{path}: not a PyTorch weight file, truncated, or holds code") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise WeightsError(f"{path}: holds no state dict (names with tensors)")
    return {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in content.items()
    }


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a weight file into `model`, strictly. Raises `WeightsError` if it does not fit."""
    _load(model, read_state_dict(path), path)


def load_backbone(model: nn.Module, path: Path) -> None:
    """Load a classifier's weight file into `model.body`; its final layer is left out."""
    state = read_state_dict(path)
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    _load(model.body, body, path)  # type: ignore[arg-type]


def _load(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    expected = {name: value.shape for name, value in model.state_dict().items()}
    found = {name: value.shape for name, value in state.items()}
    wrong = sorted(set(expected.items()) ^ set(found.items()))
    if wrong:
        raise WeightsError(
            f"{path}: not weights of {type(model).__name__} "
            f"({len(found)} tensors, {len(expected)} expected; first difference: {wrong[0][0]})"
        )
    model.load_state_dict(state)


def save_weights(model: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `model`'s weights as safetensors, floating-point tensors as `dtype`; atomic.

    Raises `WeightsError` if a value is not finite in `dtype`, or for another suffix.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: weights are written as .safetensors files only")
    state = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        state[name] = value.to(dtype).contiguous() if value.is_floating_point() else value
        if not torch.isfinite(state[name]).all():
            raise WeightsError(f"{path}: {name} is not finite as {dtype}; nothing written")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.write_bytes(safetensors.torch.save(state))  # save_file would set mode 600
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
