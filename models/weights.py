"""Weight files: read without executing pickled code, written as safetensors."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models.retinaface import BACKBONES, RetinaFace

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


def load_retinaface(path: Path) -> RetinaFace:
    """Read a detector from a weight file; see `build_retinaface`. Raises `WeightsError`."""
    return build_retinaface(read_state_dict(path), path)


def build_retinaface(state: Mapping[str, Tensor], path: Path) -> RetinaFace:
    """Build the detector whose state dict this is, on the CPU and in train mode.

    Its names and shapes tell the backbone and the width. `path`, where it comes from, stands
    in the message. Raises `WeightsError` if it does not fit strictly.
    """
    backbone = _backbone_of(state, "body.")
    pyramid = state.get("fpn.output1.0.weight")  # [channels, C_3, 1, 1]
    if backbone is None or pyramid is None or pyramid.ndim != 4:
        raise WeightsError(
            f"{path}: not weights of a RetinaFace detector (backbones: {', '.join(BACKBONES)})"
        )
    try:
        detector = RetinaFace(backbone, pyramid.shape[0])
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    _load(detector, state, path)
    return detector


def load_backbone(model: RetinaFace, path: Path) -> None:
    """Load a classifier's weight file into `model.body`; its final layer is left out.

    For ResNet-50 that is a file as torchvision publishes it. Raises `WeightsError`.
    """
    state = read_state_dict(path)
    found, wanted = _backbone_of(state), _backbone_of(model.body.state_dict())
    if found not in (None, wanted):
        raise WeightsError(
            f"{path}: weights of {found}, but the detector's backbone is {wanted}; "
            "change critic.backbone or the file"
        )
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    _load(model.body, body, path)


def _backbone_of(state: Iterable[str], prefix: str = "") -> str | None:
    """Tell a backbone of `models.retinaface.BACKBONES` by the names of its first stage."""
    for backbone, stage in (("mobilenet0.25", "stage1."), ("resnet50", "layer1.")):
        if any(name.startswith(prefix + stage) for name in state):
            return backbone
    return None


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    # BatchNorm's step counters are unused here, and torchvision's ImageNet files lack them.
    counters = {name: own[name] for name in own if name.endswith(".num_batches_tracked")}
    complete = {**counters, **state}
    expected = {name: value.shape for name, value in own.items()}
    found = {name: value.shape for name, value in complete.items()}
    wrong = sorted(set(expected.items()) ^ set(found.items()))
    if wrong:
        raise WeightsError(
            f"{path}: not weights of {type(model).__name__} "
            f"({len(state)} tensors, {len(expected)} expected; first difference: {wrong[0][0]})"
        )
    model.load_state_dict(complete)


def save_weights(model: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `model`'s weights as safetensors, floating-point tensors as `dtype`; atomic.

    Raises `WeightsError` if a value is not finite in `dtype`, or for another suffix.
    """
    state = model.state_dict()
    write_safetensors(
        {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in state.items()
        },
        path,
    )


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write `tensors` and the text beside them, moved into place when whole.

    Raises `WeightsError` if a value is not finite, or for another suffix than .safetensors.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: weights are written as .safetensors files only")
    state = {}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: {name} is not finite as {value.dtype}; nothing written")
        state[name] = value.detach().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        # save_file would set mode 600.
        temporary.write_bytes(safetensors.torch.save(state, metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
