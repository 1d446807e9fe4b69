"""One at a time in a folder: one process, and one part of it."""

from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"

#: Claims of this process: the number of the process (a forked child inherits the set, but no lock), device and inode of
#: the file. The kernel takes two claims of one process for one, and ends both with the first.
_OWN: set[tuple[int, int, int]] = set()
_OWN_GUARD = threading.Lock()


class FolderInUseError(ValueError):
    """Another process, or another part of this one, is at work in the folder; the message names both."""


@contextmanager
def claim(folder: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Within the block nobody else in this process, on this machine or one that shares the disk can claim ``folder``.

    The claim ends with the process, however it ends. It is a POSIX record lock: forked children, such as a loader's
    workers that outlive a killed run for some seconds, do not hold it on.

    Args:
        folder: must exist.
        wait: seconds to wait for another that is just about to end.

    Raises:
        FolderInUseError: another has it.
    """
    path = Path(folder) / LOCK
    deadline = time.monotonic() + wait
    while (file := _take(path)) is None:
        if time.monotonic() >= deadline:
            raise FolderInUseError(f"{folder} is in use by {_owner(path)}")
        time.sleep(0.1)
    own = _number(os.fstat(file))
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{_name()}\n".encode(), 0)
        yield
    finally:
        with _OWN_GUARD:
            os.close(file)
            _OWN.discard(own)


def _take(path: Path) -> int | None:
    """The open and locked file; None where another has it."""
    with _OWN_GUARD:
        if _is_own(path):
            return None  # not even opened: to close it again would end the claim
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if isinstance(error, (BlockingIOError, PermissionError)):  # POSIX allows either
                return None
            raise
        _OWN.add(_number(os.fstat(file)))
        return file


def _owner(path: Path) -> str:
    with _OWN_GUARD:
        if _is_own(path):
            return f"{_name()}, which is this very process"
        try:
            return path.read_text(errors="replace").strip() or "another process"
        except FileNotFoundError:  # it has just gone, with the folder
            return "another process"


def _is_own(path: Path) -> bool:
    return path.exists() and _number(path.stat()) in _OWN


def _number(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino


def _name() -> str:
    return f"process {os.getpid()} on {platform.node()}"
