"""Files that are either whole or not there."""

from __future__ import annotations

import os
import platform
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def atomic_write(
    path: str | Path, content: bytes | str | Callable[[Path], object], keep: str | Path | None = None
) -> None:
    """Write ``path`` so that at any moment, whatever dies, its name leads to the old content or to the new, whole.

    The content goes to a hidden file beside it, is forced to the disk and then takes the name. An error (a full disk,
    say) leaves the old file as it was and removes the hidden one; what a killed process left the next call removes.

    Args:
        path: where to; its folder must exist.
        content: bytes, text (UTF-8), or a function that writes to the path it is given, which ends like ``path``.
        keep: a name in the same folder under which the content so far stays, from the moment ``path`` is new.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    _remove_leftovers(path)
    new, old = _hidden_name(path, "new"), _hidden_name(path, "old")
    try:
        _write(new, content)
        _sync(new)
        if keep is not None and path.exists():
            _second_name(path, old)
        os.replace(new, path)
        if old.exists():
            os.replace(old, Path(keep or old))
        _sync(path.parent)
    finally:
        new.unlink(missing_ok=True)
        old.unlink(missing_ok=True)


def remove_if_empty(folder: str | Path) -> None:
    """Remove ``folder`` where nothing lies in it; several processes may try the same at once."""
    with suppress(OSError):  # to look first whether it is there and empty would leave time for another process
        os.rmdir(folder)


def _write(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _second_name(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, other)
        _sync(other)


def _hidden_name(path: Path, kind: str) -> Path:
    owner = f"{platform.node()}-{os.getpid()}"
    return path.with_name(f".{path.stem}.{owner}-{uuid.uuid4().hex[:8]}.{kind}{path.suffix}")


def _remove_leftovers(path: Path) -> None:
    """Remove hidden files for ``path`` whose process, on this machine, no longer lives."""
    prefix = f".{path.stem}.{platform.node()}-"
    for kind in ("new", "old"):
        for file in path.parent.glob(f"{prefix}*.{kind}{path.suffix}"):
            process = file.name.removeprefix(prefix).partition("-")[0]
            if process.isdigit() and not _lives(int(process)):
                file.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
