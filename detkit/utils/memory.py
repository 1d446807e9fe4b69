"""Memory that is asked for again and again stays with the process."""

from __future__ import annotations

import ctypes
import os
import sys

#: Parameters of glibc's mallopt (malloc.h), and the most that each takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_ONE_BY_ONE = 2**30
#: By these a user has said otherwise (glibc's manual, "Memory Allocation Tunables").
_SAID = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for the next call, instead of giving it back to the system; True where it does.

    glibc gives large blocks back when they are freed and maps them anew, and the system fills every page with zeros at
    its first touch: on a CPU a fifth of a training step, whose maps have the same sizes in every step. The most memory
    that is held at a time stays the same; it goes back at the process's end alone. Blocks above 1 GiB still come and go
    one by one. For processes of our own: a program that uses detkit decides for itself. Elsewhere than with glibc, or
    where the environment sets malloc's thresholds, nothing is done.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SAID):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    return bool(set_option(_MMAP_THRESHOLD, _ONE_BY_ONE) and set_option(_TRIM_THRESHOLD, _NEVER))
