"""Jobs in worker processes, of which each can fail without the others; the parent's side.

Every worker has a pipe of its own and does one part of a job (`utils.job_steps`) at a time, so that
it is known which job a process died of. That job is lost; others whose state died with it begin
again in a new process.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import Any

from utils.job_steps import TICK, Asked, Ended, Event, Lost
from utils.worker_process import ONE_THREAD, serve

MOST_WORKERS = 61
"""Windows cannot wait for more processes."""

_START_SECONDS = 300.0
_STOP_SECONDS = 30.0
_USELESS_STARTS = 10


class WorkerError(Exception):
    """Worker processes do not come up; the message is one line."""


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on Windows and macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass
class _Worker:
    """The parent's view of one worker: its process, and the jobs whose state it holds."""

    process: Any = None
    pipe: Any = None
    jobs: dict[int, Any] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    replies: deque[tuple[int, str, Any]] = field(default_factory=deque)
    deadline: float | None = None  # of the part at hand, by the pool's clock
    was_late: bool = False


class WorkerPool:
    """Runs jobs in `count` processes, started by `spawn`; a context manager.

    function: called with a job, in a worker; it must be found by import.
    seconds: how long one part of a job may take, after which its process is killed.
    in_flight: jobs begun and not ended, at most.
    in_flight_bytes: no job begins while the requests of those in flight hold more.

    The processes come up at once; `run` gives them their jobs. Ctrl-C is the parent's alone, and
    the end of the parent, in whatever way, ends them.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        count: int,
        seconds: Callable[[Any], float],
        in_flight: int = 2 * MOST_WORKERS,
        in_flight_bytes: int = 1 << 28,
    ) -> None:
        self._function, self._seconds = function, seconds
        self._in_flight, self._in_flight_bytes = in_flight, in_flight_bytes
        self._count = max(1, min(count, MOST_WORKERS))
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Condition()
        self._events: queue.SimpleQueue[Event | WorkerError] = queue.SimpleQueue()
        self._jobs: Iterator[Any] | None = None  # not given yet, or all taken
        self._again: deque[Any] = deque()
        self._open = 0  # jobs begun, and ended but not yet handed to the caller of `run`
        self._begun = 0
        self._bytes = 0
        self._tickets = itertools.count()
        self._useless_starts = 0
        self._stopping = False
        self._stopped = threading.Event()
        self._clock = 0.0
        self._workers = [_Worker() for _ in range(self._count)]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> WorkerPool:
        for variable in ONE_THREAD:
            os.environ[variable] = "1"  # read by numpy's BLAS when a worker imports it
        if os.name == "posix":
            # Brought up by the first process to start, it would end the block of SIGINT there.
            resource_tracker.ensure_running()
        self._threads = [
            threading.Thread(target=self._drive, args=(worker,), daemon=True)
            for worker in self._workers
        ]
        self._threads.append(threading.Thread(target=self._watch, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self, jobs: Iterable[Any], is_interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[Event]:
        """Do the jobs, and yield what becomes of them as it happens, until `is_interrupted`.

        `jobs` is read as workers become free. Every `Asked` must be answered or refused. Raises
        `WorkerError` where processes die before they take up work.
        """
        with self._lock:
            self._jobs = iter(jobs)
            self._lock.notify_all()
        while not self._is_over() and not is_interrupted():
            event = self._next_event()
            if isinstance(event, WorkerError):
                raise event
            if event is not None:
                if not isinstance(event, Asked):
                    with self._lock:
                        self._open -= 1
                yield event

    def _is_over(self) -> bool:
        with self._lock:
            return self._jobs is None and not self._open

    def _next_event(self) -> Event | WorkerError | None:
        try:  # a wait without an end could not be interrupted on Windows
            return self._events.get(timeout=TICK)
        except queue.Empty:
            return None

    def stop(self) -> list[Ended | Lost]:
        """Let every worker end the part at hand, then end it; returns what ended meanwhile."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        self._stopped.set()
        deadline = time.monotonic() + _STOP_SECONDS
        try:
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        finally:  # also where a second Ctrl-C cuts the wait short
            for worker in self._workers:
                if worker.process is not None and worker.process.is_alive():
                    worker.process.kill()
        ended: list[Ended | Lost] = []
        while not self._events.empty():
            event = self._events.get()
            if isinstance(event, (Ended, Lost)):
                ended.append(event)
        return ended

    def _drive(self, worker: _Worker) -> None:
        """Hand one worker its parts of jobs, one after the other; a thread of the parent."""
        if hasattr(signal, "pthread_sigmask"):  # inherited: Ctrl-C must not hit a starting process
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._start(worker)
            while (part := self._next_part(worker)) is not None:
                self._do(worker, part)
        except Exception as error:  # a thread that ends unseen would leave the others waiting
            self._events.put(WorkerError(f"{type(error).__name__}: {error}"))
        finally:
            if worker.process is not None:
                worker.pipe.close()  # the worker's sign to end
                worker.process.join(_STOP_SECONDS / 3)
                worker.process.kill()

    def _start(self, worker: _Worker) -> None:
        while not self._stopping:
            worker.pipe, theirs = self._context.Pipe()
            worker.process = self._context.Process(
                target=serve, args=(theirs, self._function), daemon=True
            )
            worker.process.start()
            theirs.close()  # the process alone holds that end: its death is seen at ours
            try:
                self._begin_wait(worker, _START_SECONDS)
                worker.pipe.recv()
                worker.deadline = None
                return
            except (EOFError, OSError):
                self._count_useless_start(_cause_of_death(worker, _START_SECONDS))

    def _count_useless_start(self, cause: str) -> None:
        with self._lock:
            self._useless_starts += 1
            if self._useless_starts < _USELESS_STARTS:
                return
        self._events.put(
            WorkerError(
                f"worker processes end before they do any work ({cause}), perhaps for want of "
                "memory; start again with fewer --workers to go on"
            )
        )
        with self._lock:
            self._stopping = True

    def _next_part(self, worker: _Worker) -> tuple[int, str, Any] | None:
        """Wait for something to do: an answer for a job of this worker, or a new job."""
        with self._lock:
            while not self._stopping:
                if worker.replies:
                    return worker.replies.popleft()
                job = self._new_job()
                if job is not None:
                    ticket = next(self._tickets)
                    worker.jobs[ticket] = job
                    return ticket, "start", job
                self._lock.wait()
            return None

    def _new_job(self) -> Any:
        is_full = self._begun >= self._in_flight or (
            self._begun > 0 and self._bytes >= self._in_flight_bytes
        )
        if is_full:
            return None
        job = self._again.popleft() if self._again else None
        if job is None and self._jobs is not None:
            job = next(self._jobs, None)
            if job is None:
                self._jobs = None
            else:
                self._open += 1
        if job is not None:
            self._begun += 1
        return job

    def _do(self, worker: _Worker, part: tuple[int, str, Any]) -> None:
        ticket, _, _ = part
        job = worker.jobs[ticket]
        seconds = self._seconds(job)
        is_sent = False
        try:
            self._begin_wait(worker, seconds)
            worker.pipe.send(part)
            is_sent = True
            message = worker.pipe.recv_bytes()
            worker.deadline = None
            kind, value = pickle.loads(message)
        except (EOFError, OSError):
            cause = _cause_of_death(worker, seconds)
            self._give_up(worker, ticket if is_sent or worker.was_late else None, cause)
            if not is_sent:  # it died while it had nothing to do
                self._count_useless_start(cause)
            self._start(worker)
            return
        self._useless_starts = 0
        if kind == "asked":
            with self._lock:
                self._bytes += len(message) - worker.sizes.get(ticket, 0)
                worker.sizes[ticket] = len(message)

            def reply(action: str, value: Any) -> None:
                with self._lock:
                    if ticket in worker.jobs:
                        worker.replies.append((ticket, action, value))
                        self._lock.notify_all()

            self._events.put(Asked(job, value, reply))
            return
        with self._lock:
            self._close(worker, ticket)
        self._events.put(Ended(job, value) if kind == "ended" else Lost(job, value))

    def _begin_wait(self, worker: _Worker, seconds: float) -> None:
        worker.was_late = False
        worker.deadline = self._clock + seconds

    def _give_up(self, worker: _Worker, guilty: int | None, cause: str) -> None:
        """Lose the job that a process died of; begin the others again that it held."""
        with self._lock:
            worker.replies.clear()
            for ticket, job in list(worker.jobs.items()):
                self._close(worker, ticket)
                if ticket == guilty:
                    self._events.put(Lost(job, cause))
                else:
                    self._again.append(job)

    def _close(self, worker: _Worker, ticket: int) -> None:
        del worker.jobs[ticket]
        self._bytes -= worker.sizes.pop(ticket, 0)
        self._begun -= 1
        self._lock.notify_all()

    def _watch(self) -> None:
        """Kill workers that take too long; a thread of the parent.

        The clock stands still while this process does (Ctrl-Z, a laptop that sleeps).
        """
        last = time.monotonic()
        while not self._stopped.wait(TICK):
            now = time.monotonic()
            self._clock += min(now - last, 4 * TICK)
            last = now
            for worker in self._workers:
                if worker.deadline is not None and self._clock > worker.deadline:
                    worker.was_late = True
                    worker.process.kill()


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Take Ctrl-C for a wish; yields a function that tells whether it was pressed.

    `KeyboardInterrupt` would strike anywhere, also between a job's end and its entry in the books.
    A second Ctrl-C raises it. In threads other than the main one it is left as it is.
    """
    pressed = False

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handler = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, handler)


def _cause_of_death(worker: _Worker, seconds: float) -> str:
    worker.deadline = None
    worker.process.join(_STOP_SECONDS)
    code = worker.process.exitcode
    if worker.was_late:
        return f"it took longer than {seconds:.0f} s and was given up"
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the process that worked on it was ended by {name}"
    return f"the process that worked on it ended with code {code}"
