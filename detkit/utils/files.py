"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Written to try a folder: a disk without room for so many bytes has none for any result.
_TRIAL = 4096


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
        OSError: the file cannot be written; its ``filename`` is ``path``.
    """
    path = Path(path)
    with named(path):
        _remove_leftovers(path)
        _write_beside(path, content, keep)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Within the block an OSError names ``path``: the system names no file where a write fails, or a hidden one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """``path``, made where it is missing and tried; a block that fails before it writes leaves no folder behind.

    Raises:
        OSError: the folder cannot be made, or nothing can be written in it; the error names it.
    """
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with named(path):
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path, buffering=0) as trial:
                trial.write(bytes(_TRIAL))
        yield path
    except BaseException:
        with suppress(OSError):  # the first that holds something stays, and so do those around it
            for folder in made:
                folder.rmdir()
        raise


def write_picture(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all, but without waiting for the disk: for files that are many.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    path = Path(path)
    new = path.with_name(f".new{path.suffix}")  # one for all files of a folder: what a kill leaves is no pile
    with named(path):
        try:
            new.write_bytes(content)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)


class JsonList:
    """A JSON file with a list that grows and is whole after every :meth:`extend`, whatever ends the process then.

    Raises:
        OSError: the file cannot be written; the error names ``path``.
    """

    _END = b"\n]\n"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._count = 0
        atomic_write(self.path, b"[" + self._END)
        with named(self.path):
            self._file = os.open(self.path, os.O_RDWR)
        self._size = 1  # without the end, which the next rows overwrite

    def __len__(self) -> int:
        return self._count

    def extend(self, rows: Iterable[Any]) -> None:
        """Append ``rows``.

        Raises:
            OSError: they cannot be written; the list is as it was before.
        """
        lines = [json.dumps(row, allow_nan=False) for row in rows]
        if not lines:
            return
        text = (("," if self._count else "") + "\n" + ",\n".join(lines)).encode()
        with named(self.path):
            try:
                _write_at(self._file, text + self._END, self._size)
            except BaseException:
                os.ftruncate(self._file, self._size + len(self._END))
                _write_at(self._file, self._END, self._size)
                raise
        self._size += len(text)
        self._count += len(lines)

    def close(self) -> None:
        """Force the file to the disk."""
        with named(self.path):
            try:
                os.fsync(self._file)
            finally:
                os.close(self._file)


def _write_at(file: int, content: bytes, place: int) -> None:
    while content:
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written


def _write_beside(path: Path, content: bytes | str | Callable[[Path], object], keep: str | Path | None) -> None:
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
