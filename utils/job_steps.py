"""Jobs that are done in parts, and what becomes of them.

A job is a generator function that does one part of its work, yields what it needs from the parent,
and goes on with the answer. In a worker (`utils.workers`), what it holds meanwhile, a photo's
pixels, say, stays in its process, which works on other jobs until the answer is there. A function
without `yield` is a job of one part.
"""

from __future__ import annotations

import inspect
import queue
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

TICK = 0.5
"""Seconds after which a wait of a pool looks up: without an end, Windows could not interrupt it."""


@dataclass(frozen=True)
class Ended:
    """A job that came to its end; `value` is what its function returned."""

    job: Any
    value: Any


@dataclass(frozen=True)
class Lost:
    """A job whose process crashed, took too long, or raised; `reason` is one line."""

    job: Any
    reason: str


@dataclass(frozen=True)
class Asked:
    """A job that waits for an answer to what it yielded; other threads may give it."""

    job: Any
    request: Any
    _reply: Callable[[str, Any], None]

    def answer(self, value: Any) -> None:
        """Let the job go on with `value`. Does nothing where its process has died."""
        self._reply("send", value)

    def refuse(self, error: Exception) -> None:
        """Raise `error` in the job; it must be picklable."""
        self._reply("throw", error)


Event = Ended | Lost | Asked


def advance(steps: Generator[Any, Any, Any], action: str, value: Any) -> Any:
    """Go on with a job; returns its next request, raises `StopIteration` at its end."""
    return steps.throw(value) if action == "throw" else steps.send(value)


class InlinePool:
    """Does jobs in this process, one after the other; to be used like `utils.workers.WorkerPool`.

    For debugging: a job that crashes or hangs takes the program with it.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._replies: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stop(self) -> list[Ended | Lost]:
        """Nothing is at hand when this can be called."""
        return []

    def run(
        self, jobs: Iterable[Any], is_interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[Event]:
        """Do the jobs; see `WorkerPool.run`."""
        for job in jobs:
            if is_interrupted():
                return
            result = self._function(job)
            if not inspect.isgenerator(result):
                yield Ended(job, result)
                continue
            action, value = "send", None
            while True:
                try:
                    request = advance(result, action, value)
                except StopIteration as stop:
                    yield Ended(job, stop.value)
                    break
                yield Asked(job, request, self._reply)
                action, value = self._next_reply()

    def _reply(self, action: str, value: Any) -> None:
        self._replies.put((action, value))

    def _next_reply(self) -> tuple[str, Any]:
        while True:
            try:  # as in `WorkerPool`
                return self._replies.get(timeout=TICK)
            except queue.Empty:
                continue
