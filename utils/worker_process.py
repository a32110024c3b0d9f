"""What runs in a worker process of `utils.workers`, and ends with its parent."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any

from utils.job_steps import advance

# A job at a time in every process: more threads inside would only fight over the cores.
ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def serve(pipe: Connection[Any, Any], function: Callable[[Any], Any]) -> None:
    """Do one part of a job after the other, until the parent closes the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if "cv2" in sys.modules:  # imported with the function
        sys.modules["cv2"].setNumThreads(1)
    held: dict[int, Generator[Any, Any, Any]] = {}
    pipe.send(None)
    while True:
        try:
            ticket, action, value = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send_bytes(_part(held, function, ticket, action, value))


def _part(
    held: dict[int, Generator[Any, Any, Any]],
    function: Callable[[Any], Any],
    ticket: int,
    action: str,
    value: Any,
) -> bytes:
    """Do one part of a job; returns the pickled ("asked" | "ended" | "raised", value)."""
    try:
        if action == "start":
            result = function(value)
            if not inspect.isgenerator(result):
                return pickle.dumps(("ended", result), pickle.HIGHEST_PROTOCOL)
            held[ticket] = result
            action, value = "send", None
        try:
            request = advance(held[ticket], action, value)
        except StopIteration as stop:
            del held[ticket]
            return pickle.dumps(("ended", stop.value), pickle.HIGHEST_PROTOCOL)
        return pickle.dumps(("asked", request), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        held.pop(ticket, None)
        return pickle.dumps(("raised", " ".join(f"{type(error).__name__}: {error}".split())))


def end_with_parent() -> None:
    """End this process as soon as its parent ends, however that comes about."""
    # Whoever starts the parent again must not meet its old jobs still writing.
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
