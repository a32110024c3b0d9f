"""Chooses the device that the networks run on."""

from __future__ import annotations

import torch


class DeviceError(Exception):
    """The wanted device is not there; the message is one clear line."""


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu" or "cuda" into a device; "auto" takes CUDA where it works.

    Raises `DeviceError` for "cuda" without a usable GPU, rather than running on the CPU unseen.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: this PyTorch sees no CUDA GPU; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
