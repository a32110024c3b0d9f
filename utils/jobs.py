"""Jobs side by side, in a few processes with one CPU thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2
import torch

from utils.worker_process import ONE_THREAD, end_with_parent


class JobError(Exception):
    """A process that died, or, as a cause, where in a process an error arose."""


def run_jobs(function: Callable[..., None], jobs: Sequence[tuple[Any, ...]], at_once: int) -> None:
    """Call `function(*job)` for each job, `at_once` of them at a time.

    One at a time runs here, in order, with the threads that are set. More run in new processes,
    for which the function must be found by import and the arguments be plain values. The first
    error ends the other jobs and is raised; a process that dies raises `JobError`. Ending this
    process, in whatever way, ends the others.
    """
    if at_once == 1:
        for job in jobs:
            function(*job)
        return
    for variable in ONE_THREAD:
        os.environ[variable] = "1"  # read by numpy's BLAS when a new process imports it
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(jobs))
    processes: dict[Any, Any] = {}
    try:
        for _ in range(min(at_once, len(jobs))):
            ours, theirs = context.Pipe()
            exact = not torch.backends.cudnn.allow_tf32
            process = context.Process(target=_serve, args=(theirs, function, exact))
            process.start()
            theirs.close()  # the process alone holds that end: its death is seen at ours
            processes[ours] = process
        busy = set(processes)
        for ours in processes:  # once all are on their way: sending waits for them to come up
            ours.send(waiting.pop())
        while busy:
            for pipe in wait(list(busy)):
                _receive(pipe, processes[pipe])
                if waiting:
                    pipe.send(waiting.pop())  # type: ignore[union-attr]
                else:
                    busy.remove(pipe)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _receive(pipe: Any, process: Any) -> None:
    """Hear that a job has ended, and raise what it raised."""
    try:
        error, trace = pipe.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise JobError(
            f"a process died (exit code {process.exitcode}), perhaps for want of memory; "
            "start again with fewer --jobs to go on"
        ) from None
    if error is not None:
        raise error from JobError(f"in a job's process:\n{trace}")


def _serve(pipe: Connection[Any, Any], function: Callable[..., None], exact: bool) -> None:
    """Do one job after the other, until the parent ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    end_with_parent()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.backends.cudnn.allow_tf32 = not exact  # as in the parent
    while True:
        job = pipe.recv()
        try:
            function(*job)
        except Exception as error:
            pipe.send((error, traceback.format_exc()))
        else:
            pipe.send((None, ""))
