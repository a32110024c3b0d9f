"""Jobs in worker processes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import utils.workers
from tests.worker_jobs import BrokenOnArrival, accident, ask_and_add, ask_for_pixels, plain, refused
from utils.job_steps import Asked, Ended, InlinePool, Lost
from utils.workers import WorkerError, WorkerPool

needs_signals = pytest.mark.skipif(os.name == "nt", reason="needs signals")


def pool(function: Callable[[Any], Any], count: int = 2, **options: Any) -> WorkerPool:
    seconds = options.pop("seconds", 60.0)
    return WorkerPool(function, count, lambda job: seconds, **options)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_jobs_ask_and_go_on_with_the_answer(workers: int) -> None:
    asked: Counter[tuple[str, int]] = Counter()
    done: dict[int, int] = {}
    pids = set()
    with pool(ask_and_add, workers) if workers else InlinePool(ask_and_add) as jobs:
        for event in jobs.run(range(20)):
            if isinstance(event, Asked):
                asked[event.request] += 1
                which, job = event.request
                event.answer(100 * job if which == "first" else 7)
            else:
                assert isinstance(event, Ended)
                pid, done[event.job] = event.value
                pids.add(pid)
    assert done == {job: 100 * job + 7 for job in range(20)}
    assert set(asked.values()) == {1}
    assert len(asked) == 40
    assert (pids == {os.getpid()}) if workers == 0 else (os.getpid() not in pids)


def test_large_requests_and_answers_pass_each_other() -> None:
    """More than fits into a pipe, in both directions at once."""
    with pool(ask_for_pixels, in_flight=6) as jobs:
        results = []
        for event in jobs.run([3] * 12):
            if isinstance(event, Asked):
                event.answer(255 - event.request)
            else:
                assert isinstance(event, Ended)
                results.append(event.value)
    assert results == [True] * 12


def test_jobs_begin_only_while_there_is_room() -> None:
    for options, most in (({"in_flight": 4}, 4), ({"in_flight_bytes": 5 << 20}, 4)):
        begun = 0

        def jobs_to_do() -> Iterator[int]:
            nonlocal begun
            for _ in range(12):
                begun += 1
                yield 2  # MB each

        waiting: list[Asked] = []
        ended = 0
        with pool(ask_for_pixels, **options) as jobs:
            for event in jobs.run(jobs_to_do()):
                if isinstance(event, Asked):
                    waiting.append(event)
                else:
                    ended += 1
                # Both workers may begin one more before they know of each other's size.
                assert begun - ended <= most + 1
                if len(waiting) == min(3, 12 - ended):
                    for asked in waiting:
                        asked.answer(255 - asked.request)
                    waiting.clear()
        assert ended == begun == 12


@needs_signals
def test_an_accident_costs_one_job() -> None:
    """Whatever else the process held begins again."""
    names = ["a", "segfault", "b", "kill", "c", "exit", "d", "raise", "e", "hang", "f"]
    waiting: list[Asked] = []
    done, lost = [], {}
    with pool(accident, seconds=1.5) as jobs:
        for event in jobs.run(names):
            if isinstance(event, Asked):
                waiting.append(event)
            elif isinstance(event, Ended):
                done.append(event.value)
            else:
                lost[event.job] = event.reason
            # Late, so that processes hold several when they die.
            if len(waiting) >= 5 or len(done) + len(lost) + len(waiting) >= len(names):
                for asked in waiting:
                    asked.answer(None)
                waiting.clear()
    assert sorted(done) == ["a", "b", "c", "d", "e", "f"]
    assert lost == {
        "segfault": "the process that worked on it was ended by SIGSEGV",
        "kill": "the process that worked on it was ended by SIGKILL",
        "exit": "the process that worked on it ended with code 3",
        "raise": "MemoryError: no room for it",
        "hang": "it took longer than 2 s and was given up",
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_can_be_the_answer(workers: int) -> None:
    ends: list[Ended | Lost] = []
    with pool(refused, workers) if workers else InlinePool(refused) as jobs:
        for event in jobs.run([1]):
            if isinstance(event, Asked):
                event.refuse(ValueError("not this one"))
            else:
                ends.append(event)
    assert [event.value for event in ends if isinstance(event, Ended)] == ["not this one"]


def test_stopping_lets_what_is_at_hand_end() -> None:
    with pool(plain) as jobs:
        events = jobs.run([0.0, *[0.3] * 50])
        first = next(events)
        assert isinstance(first, Ended)
        rest = jobs.stop()
    assert 1 <= len(rest) <= 3
    assert all(isinstance(event, Ended) for event in rest)


def test_a_pool_can_be_given_more_jobs() -> None:
    with pool(plain) as jobs:
        assert len(list(jobs.run([0.0] * 3))) == 3
        assert list(jobs.run([])) == []
        assert len(list(jobs.run([0.0] * 2))) == 2


def test_processes_that_do_not_come_up_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.workers, "_USELESS_STARTS", 2)
    with (
        pool(BrokenOnArrival()) as jobs,
        pytest.raises(WorkerError, match=r"end before they do any work .*code 5.*fewer --workers"),
    ):
        list(jobs.run([1, 2]))
