"""One at a time in a folder: one process, and one part of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


class FolderInUseError(ValueError):
    """Another process, or another part of this one, is at work in the folder; the message names both."""


@contextmanager
def claim(folder: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Within the block nobody else in this process, on this machine or one that shares the disk can claim ``folder``.

    The claim ends with the process, however it ends: forked children, such as a loader's workers that outlive a killed
    run for some seconds, do not hold it on (filelock closes their copy of it as they are forked).

    Args:
        folder: must exist.
        wait: seconds to wait for another that is just about to end.

    Raises:
        FolderInUseError: another has it.
    """
    path = Path(folder) / LOCK
    # where the disk knows no locks, a file as a mark would outlive a killed process: better an error
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait, poll_interval=0.1)
    except Timeout:
        raise FolderInUseError(f"{folder} is in use by {_owner(path)}") from None
    try:
        path.write_text(f"{_name()}\n")
        yield
    finally:
        lock.release()


@contextmanager
def turn(path: str | Path, wait: float) -> Iterator[bool]:
    """Whether nobody else has a turn at ``path``, a file of its own, within the block; False after ``wait`` seconds.

    For what is done often and takes a moment; the claim to a folder also tells who has it.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait, poll_interval=0.002)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _owner(path: Path) -> str:
    try:
        name = path.read_text(errors="replace").strip()
    except FileNotFoundError:  # it has just gone, with the folder
        name = ""
    return f"{name}, which is this very process" if name == _name() else name or "another process"


def _name() -> str:
    return f"process {os.getpid()} on {platform.node()}"
