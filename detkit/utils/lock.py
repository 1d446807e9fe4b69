"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


class FolderInUseError(ValueError):
    """Another process is at work in the folder; the message names both."""


@contextmanager
def claim(folder: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Within the block no other process, on this machine or one that shares the disk, can claim ``folder``.

    The claim ends with the process, however it ends. It is a POSIX record lock: forked children, such as a loader's
    workers that outlive a killed run for some seconds, do not hold it on.

    Args:
        folder: must exist.
        wait: seconds to wait for another process that is just about to end.

    Raises:
        FolderInUseError: another process has it.
    """
    file = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + wait
        while not _try(file):
            if time.monotonic() >= deadline:
                owner = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
                raise FolderInUseError(f"{folder} is in use by {owner}")
            time.sleep(0.1)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def _try(file: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True
