"""Unpack a zip or tar archive: all of it or nothing, and nothing outside the folder.

All members are looked at before the first is written; they go to a hidden folder inside the target and are renamed into
place when the last one is there. A record of every file and its size, written at the very end, then tells a later call
that nothing is to be done, or that something has gone since.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from disk import CHUNK, FetchError, read_json, require_space, write_json
from progress import Meter
from rich.console import Console

#: What zipfile and tarfile raise on damaged archives: besides their own errors, whatever the damage led them to try.
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError,
    OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """A regular file of an archive. ``name`` as stored; ``open`` gives its content."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def is_unpacked(target: Path, record: Path, sha256: str | None = None) -> bool:
    """Whether all files that ``record`` names are in ``target`` with their sizes, and came from the archive ``sha256``.

    A ``sha256`` of None accepts whatever archive the record is of.
    """
    content = read_json(record)
    if not content or (sha256 is not None and content.get("sha256") != sha256):
        return False
    sizes: dict[str, dict[str, int]] = {}
    for name in content["files"]:
        folder = os.path.dirname(name)
        if folder not in sizes:  # one listing per folder: COCO has 118 287 files in one
            sizes[folder] = _list_sizes(target / folder)
    return all(sizes[os.path.dirname(n)].get(os.path.basename(n)) == size for n, size in content["files"].items())


def unpack(archive: Path, target: Path, record: Path, sha256: str, console: Console) -> int:
    """Unpack ``archive`` into ``target`` and write ``record``; returns the number of files.

    What is in ``target`` already stays, but for files of the same name, which are replaced.

    Raises:
        FetchError: not an archive, damaged, too large for the disk, or with a member that does not belong: a path that
            leads out of the folder, a link, a device.
    """
    target.mkdir(parents=True, exist_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    hidden = target / f".unpacking-{archive.name}"
    shutil.rmtree(hidden, ignore_errors=True)  # of a call that was killed
    try:
        with ExitStack() as stack:
            members = _open_archive(archive, stack)
            files = {_safe_path(archive, member.name): member for member in members}
            if not files:
                raise FetchError(f"{archive}: there are no files in it. Remove it to have it downloaded again")
            require_space(target, sum(member.size for member in members), f"unpacking {archive.name}")
            with Meter(console, f"unpacking {archive.name}") as meter:
                meter.begin(0, sum(member.size for member in members))
                for path, member in files.items():
                    _write_file(hidden / path, _read_blocks(archive, member), meter)
        _move_into(hidden, target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    write_json(record, {"archive": archive.name, "sha256": sha256, "files": {str(p): m.size for p, m in files.items()}})
    return len(files)


def _open_archive(path: Path, stack: ExitStack) -> list[_Member]:
    """The regular files of the archive, which stays open as long as ``stack``."""
    try:
        if tarfile.is_tarfile(path):  # first: a tar that ends with a zip would pass for a zip
            tar = stack.enter_context(tarfile.open(path))  # noqa: SIM115
            return [_tar_member(path, tar, info) for info in tar if not info.isdir()]
        if zipfile.is_zipfile(path):
            file = stack.enter_context(zipfile.ZipFile(path))
            return [_zip_member(path, file, info) for info in file.infolist() if not info.is_dir()]
    except FetchError:
        raise
    except DAMAGE as error:
        raise _damaged(path, error) from error
    raise FetchError(f"{path}: neither a zip nor a tar archive. Remove it to have it downloaded again")


def _zip_member(archive: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if stat.S_ISLNK(info.external_attr >> 16):  # the upper half is the Unix mode
        raise _refuse(archive, info.filename, "is a link")
    return _Member(info.filename, info.file_size, partial(file.open, info))


def _tar_member(archive: Path, file: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    if not info.isfile():
        raise _refuse(archive, info.name, "is a link" if info.islnk() or info.issym() else "is not a regular file")
    return _Member(info.name, info.size, partial(file.extractfile, info))


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:", name) or not path.parts:
        raise _refuse(archive, name, "leads out of the folder")
    return path


def _refuse(archive: Path, name: str, why: str) -> FetchError:
    return FetchError(f"{archive}: member {name!r} {why}; nothing was unpacked. This is not the archive it should be")


def _damaged(archive: Path, error: Exception) -> FetchError:
    return FetchError(f"{archive}: damaged: {error}. Remove it to have it downloaded again")


def _read_blocks(archive: Path, member: _Member) -> Iterator[bytes]:
    try:
        source = member.open()
        assert source is not None, member.name  # tarfile's answer for members without content, which are refused above
        with source:
            while block := source.read(CHUNK):
                yield block
    except DAMAGE as error:
        raise _damaged(archive, error) from error


def _write_file(path: Path, blocks: Iterable[bytes], meter: Meter) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        for block in blocks:
            stream.write(block)
            meter.advance(len(block))


def _move_into(source: Path, target: Path) -> None:
    """Move what is in ``source`` to ``target`` by renaming: folders whole where there are none yet, else by file."""
    for entry in os.scandir(source):
        goal = target / entry.name
        if entry.is_dir() and goal.is_dir():
            _move_into(Path(entry.path), goal)
        else:
            os.replace(entry.path, goal)


def _list_sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
