"""Processes that tests start: quickly, for they come from one that has imported PyTorch."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection
from typing import Any

METHODS = multiprocessing.get_all_start_methods()
CONTEXT: Any = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")


def child(function: Any, *arguments: object) -> tuple[Any, Connection]:
    """Start `function(connection, *arguments)`; returns the process, and our end of the pipe."""
    if CONTEXT.get_start_method() == "forkserver":
        CONTEXT.set_forkserver_preload(["cv2", "torch", "torchvision", "train"])
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_quietly, args=(function, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _quietly(function: Any, connection: Connection, *arguments: object) -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    function(connection, *arguments)


def call_train(*arguments: object) -> int:
    """Call train.py in this process with the arguments given; returns its exit code."""
    import train

    sys.argv = ["train.py", *map(str, arguments)]
    return train.main()
