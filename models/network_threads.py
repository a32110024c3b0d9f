"""The two networks for many photos at once: answers what the steps of `utils.hiding` ask for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import torch

from models.anonymize import Anonymizer, load_anonymizer
from models.detection import DetectionError
from models.redraw import RedrawError
from models.weights import WeightsError
from utils.device import DeviceError, pick_device
from utils.hiding import AnonymizeError, FindFaces
from utils.job_steps import Asked
from utils.provenance import file_digest
from utils.workers import cores

LOAD_ERRORS = (DeviceError, WeightsError)
"""What `load_networks` raises; the messages are one line."""

PHOTOS_AT_ONCE = {"cpu": 8, "cuda": 32}
"""Photos whose faces are redrawn together, at most, by the kind of device."""

# On the CPU each thread computes by itself. Cores that share one call wait for each other after
# every layer, and where other programs run beside it, for long.
_MOST_THREADS = 4


class NetworkThreads:
    """Threads that answer requests with `anonymizer`'s networks; a context manager.

    Faces are found photo by photo. Redrawing waits until `PHOTOS_AT_ONCE` are there or nothing else
    is to be done: the generator sees the tiles of many photos in one call. What a photo gets does
    not depend on the others; see `models.redraw.redraw_frames`.
    """

    def __init__(self, anonymizer: Anonymizer, device: torch.device) -> None:
        self._anonymizer = anonymizer
        self._at_once = PHOTOS_AT_ONCE[device.type]
        # With a GPU, one thread prepares the next call while the other waits for its results.
        count = 2 if device.type == "cuda" else min(cores(), _MOST_THREADS)
        self._inner_threads = max(1, cores() // count)
        self._to_search: deque[Asked] = deque()
        self._to_redraw: deque[Asked] = deque()
        self._lock = threading.Condition()
        self._stopping = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def __enter__(self) -> NetworkThreads:
        cv2.setNumThreads(self._inner_threads)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the calls at hand end; nothing else is answered."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()

    def submit(self, asked: Asked) -> None:
        """Answer a request of `utils.hiding` as soon as a thread is free, or refuse it."""
        queue = self._to_search if isinstance(asked.request, FindFaces) else self._to_redraw
        with self._lock:
            queue.append(asked)
            self._lock.notify()

    def _work(self) -> None:
        torch.set_num_threads(self._inner_threads)
        while batch := self._next_batch():
            if isinstance(batch[0].request, FindFaces):
                self._find(batch[0])
            else:
                self._redraw(batch)

    def _next_batch(self) -> list[Asked]:
        with self._lock:
            while not self._stopping:
                if self._to_search and len(self._to_redraw) < self._at_once:
                    return [self._to_search.popleft()]
                if self._to_redraw:
                    count = min(len(self._to_redraw), self._at_once)
                    return [self._to_redraw.popleft() for _ in range(count)]
                self._lock.wait()
            return []

    def _find(self, asked: Asked) -> None:
        try:
            found = self._anonymizer.find(asked.request.image)
        except Exception as error:  # a thread that ends unseen would leave the photo waiting
            asked.refuse(_refusal(error))
        else:
            asked.answer(found)

    def _redraw(self, batch: list[Asked]) -> None:
        try:
            redrawn = self._anonymizer.redraw([asked.request for asked in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].refuse(_refusal(error))
                return
            for asked in batch:  # whose fault it was concerns that photo alone
                self._redraw([asked])
        else:
            for asked, pixels in zip(batch, redrawn, strict=True):
                asked.answer(pixels)


def _refusal(error: Exception) -> AnonymizeError:
    if isinstance(error, (DetectionError, RedrawError)):
        return AnonymizeError(str(error))
    return AnonymizeError(" ".join(f"{type(error).__name__}: {error}".split()))


def load_networks(
    method: str, config: Mapping[str, Any], device: str, generator: Path, detector: Path | None
) -> tuple[NetworkThreads, dict[str, str]]:
    """Load the networks that are needed; see `load_anonymizer` and `pick_device`.

    Also returns digests of their weight files, by "generator" and "detector". Raises
    `LOAD_ERRORS`.
    """
    chosen = pick_device(device)
    anonymizer = load_anonymizer(method, config, chosen, generator, detector)
    files = {"generator": generator if method == "dartblur" else None, "detector": detector}
    digests = {name: file_digest(file) for name, file in files.items() if file is not None}
    return NetworkThreads(anonymizer, chosen), digests
