"""Measurements in processes of their own, so that none finds what another has left in memory."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Found = TypeVar("Found")


def in_a_process_of_its_own(measure: Callable[..., Found], *case: Any) -> Found | None:
    """What ``measure`` finds in ``case``, in a process whose memory no other has been in; None if that was killed."""
    with ProcessPoolExecutor(1, mp_context=_fresh(measure.__module__)) as pool:
        try:
            return pool.submit(measure, *case).result()
        except BrokenProcessPool:
            return None


def _fresh(module: str) -> multiprocessing.context.BaseContext:
    """Processes that start with ``module`` imported, where the system can, and with nothing else in their memory."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context
