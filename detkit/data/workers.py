"""Processes that load images: a DataLoader whose order comes from outside, and whose failures name images."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detkit.data.collate import Collate, Refusal, unpack
from detkit.structures import Batch, ImageMeta
from detkit.utils.interrupt import interrupt_waits

logger = logging.getLogger(__name__)


class WorkerError(ValueError):
    """A process that loads images died or hangs; the message names the images that it had in hand."""


class Source(Dataset, ABC):
    """Images by place. ``busy_with`` tells for each worker the index that it is loading, or -1."""

    busy_with: Tensor | None = None

    @abstractmethod
    def file(self, index: int) -> str:
        """The path of the image that ``index`` means."""


class Workers:
    """A DataLoader whose order comes from outside, and whose failures name images.

    Args:
        source: gives the image of a place.
        collate: makes a parcel of several.
        num_workers: processes; 0 loads in this one.
        timeout: seconds without a batch after which a worker is taken to hang; 0 waits for ever.
        pin_memory: put batches into page-locked memory where a GPU is at hand.

    Raises:
        ValueError: a number is negative.
    """

    def __init__(self, source: Source, collate: Collate, num_workers: int, timeout: float, pin_memory: bool) -> None:
        if num_workers < 0 or timeout < 0:
            raise ValueError(f"num_workers {num_workers} and timeout {timeout} must not be negative")
        if num_workers > (most := _most_workers()):
            raise ValueError(f"num_workers must be {most} or less here, not {num_workers}: each is a process")
        self.source = source
        self.collate = collate
        self.num_workers = num_workers
        self.timeout = timeout
        self.pin_memory = pin_memory
        self._kept: list[DataLoader] = []
        self._has_told_waste = False
        _ALL.add(self)
        # At the interpreter's end living workers would be killed, and their folders stay behind in /tmp.
        weakref.finalize(self, self._kept.clear)

    def load(
        self, batches: Iterable[list[Any]], keep: bool = False
    ) -> Iterator[tuple[Batch, tuple[tuple[str, str], ...]]]:
        """The batches and the (file, reason) of the images replaced in each.

        Args:
            batches: the place of each image.
            keep: the same ``batches`` will be asked for again: let the workers live.

        Raises:
            ValueError: an image or its boxes cannot be used; the message names the file.
            WorkerError: a worker died or hangs.
        """
        loader = self._kept[0] if self._kept else self._loader(batches, keep)
        if keep:
            self._kept[:] = [loader]
        with interrupt_waits():  # half of the workers started would be left to themselves
            iterator = iter(loader)
        try:
            while True:
                parcel = next(iterator, None)
                if parcel is None:
                    return
                if isinstance(parcel, Refusal):
                    raise parcel.error
                self._tell_waste(parcel.metas)
                yield unpack(parcel), parcel.bad
        except Exception as error:
            if self.source.busy_with is None:
                raise
            # The workers end with the last reference to them, and the frames of this process hold one; the traceback
            # of the worker itself, where there is one, stands in the message.
            self._kept.clear()
            error = error.with_traceback(None)
            if not isinstance(error, RuntimeError | OSError):
                raise error
            raise WorkerError(_told(error, self.at_work())) from error
        finally:
            del loader, iterator

    def at_work(self) -> list[str]:
        """The files that the workers are loading at this moment."""
        busy = self.source.busy_with
        return [] if busy is None else [self.source.file(i) for i in busy.tolist() if i >= 0]

    def _tell_waste(self, metas: Sequence[ImageMeta]) -> None:
        """Say once, before its pixels are used, which images make a batch mostly padding: it may be the last one."""
        if not self._has_told_waste and (waste := self.collate.waste(metas)):
            self._has_told_waste = True
            logger.warning(
                "%s: that takes time and memory, here and wherever such images meet; resize them in transform, or "
                "leave them out", waste,
            )  # fmt: skip

    def _loader(self, batches: Iterable[list[Any]], keep: bool) -> DataLoader:
        if self.num_workers:
            self.source.busy_with = torch.full((self.num_workers,), -1).share_memory_()
        return DataLoader(
            self.source,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            timeout=self.timeout if self.num_workers else 0,
            worker_init_fn=_init_worker,
            persistent_workers=self.num_workers > 0 and keep,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            # Without a generator of its own it would draw from the global one, and resuming would not be bit-exact.
            generator=torch.Generator(),
        )


#: All that live in this process.
_ALL: weakref.WeakSet[Workers] = weakref.WeakSet()


@contextmanager
def worker_deaths_explained() -> Iterator[None]:
    """Let the death of a worker end the block with :class:`WorkerError`, wherever the block is just then.

    torch raises its error from a signal handler, so in the middle of anything.

    Raises:
        WorkerError: a worker died; the message names the images that all of them were loading.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise WorkerError(_told(error, [file for workers in _ALL for file in workers.at_work()])) from error


def _told(error: Exception, files: Sequence[str]) -> str:
    text = str(error).strip()
    if isinstance(error, OSError) or os.strerror(errno.ENOSPC) in text:  # no fault of the code: its place is no help
        lines = text.splitlines()
        text = next((line for line in reversed(lines) if re.match(r"\w*Error: ", line)), lines[-1])
    at_work = f"; images being loaded: {', '.join(files)}" if files else ""
    return f"loading a batch failed: {text}{at_work}"


def _most_workers() -> int:
    """More than any loading could use: so many processes are a slip, and starting them would stop the machine."""
    return max(64, 4 * (os.cpu_count() or 1))


def _init_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers; they need not tell as well
    cv2.setNumThreads(0)
