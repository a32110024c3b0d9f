"""Jobs for worker processes; in a module of their own, which needs no PyTorch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from typing import Any

import numpy as np


def ask_and_add(job: Any) -> Generator[Any, Any, Any]:
    """Ask for two numbers, and return their sum with the process that did it."""
    first = yield ("first", job)
    second = yield ("second", job)
    return os.getpid(), first + second


def ask_for_pixels(job: int) -> Generator[Any, Any, Any]:
    """Keep an array of `job` MB, have another made of it, and compare them."""
    mine = np.random.default_rng(job).integers(0, 256, job << 20, dtype=np.uint8)
    other = yield mine
    return bool((other == 255 - mine).all())


def accident(job: str) -> Generator[Any, Any, Any]:
    """Ask once, and then, for some names, have an accident."""
    yield job
    if job == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "exit":
        os._exit(3)
    if job == "hang":
        time.sleep(600)
    if job == "raise":
        raise MemoryError("no room\nfor it")
    return job


def plain(job: float) -> tuple[float, float]:
    """No request at all: sleep that long, and say until when."""
    time.sleep(job)
    return job, time.time()


def refused(job: Any) -> Generator[Any, Any, Any]:
    """Return the words of the error that comes instead of an answer."""
    try:
        yield job
    except ValueError as error:
        return str(error)


def refuse_to_come_up() -> None:
    os._exit(5)


class BrokenOnArrival:
    """Ends the process that unpickles it."""

    def __call__(self, job: Any) -> None:
        raise AssertionError("never called")

    def __reduce__(self) -> Any:
        return refuse_to_come_up, ()
