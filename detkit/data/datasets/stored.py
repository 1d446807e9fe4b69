"""The table of a large annotation file, kept in the user's cache folder and shared by all processes that need it.

The first process to open a data set parses the file and writes the table; whoever opens it later, and the workers of
each, map what it wrote, so that eight processes and their workers have its pages once. Where it lies:
``DETKIT_CACHE``, else ``detkit/tables`` in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``; on macOS
``~/Library/Caches``, on Windows ``LOCALAPPDATA``), never beside the data. It may be deleted at any time. Where nothing
can be written, each process parses for itself.

No table is ever stale:

- It is named after the file's path, the folder of images, the options that decide what is kept, and detkit's own code
  for reading; and it is taken only while the file's device, inode, size, and times of change (mtime and ctime, in ns)
  are those that it had before it was parsed.
- A file that was written in the last two seconds, or while it was parsed, is not kept: times count in ticks.
- It is kept only where each picture is there under the very name that the file gives, and taken only where each still
  is; a picture that has gone is then told of as always.
- It carries a checksum of all its bytes, and comes into being by a rename. A damaged one is made anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from detkit.data.datasets.base import DataReport, Finding
from detkit.data.datasets.files import Listings
from detkit.data.datasets.table import Strings, TruthTable
from detkit.structures import Categories, Landmarks
from detkit.utils.files import atomic_write
from detkit.utils.lock import FolderInUseError, claim
from detkit.utils.log import logger

#: Bytes below which a file is parsed sooner than it is worth a place in the cache: a tenth of a second.
SMALLEST = 16_000_000

#: Seconds that a file must have been left alone: the coarsest clock of a file system (FAT's) ticks each two.
SETTLED = 2.0

#: Seconds to wait for another process that parses the same file: many times what COCO takes.
PATIENCE = 600.0

_MAGIC = b"detkit table 1\n\0"
_ALIGNED = 64

#: The arrays of a table but for its file names and its landmarks, which are arrays of their own.
_ARRAYS = tuple(f.name for f in fields(TruthTable) if f.name not in ("files", "landmarks", "stored"))


class Opened(NamedTuple):
    """A data set that was read and checked. ``is_exact``: its pictures are all there under the names in the file."""

    categories: Categories
    truths: TruthTable
    report: DataReport
    is_exact: bool = True


class Stamp(NamedTuple):
    """What tells one state of a file from another: ``size`` in bytes, times in ns since 1970."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """That of the file at ``path``; None where it cannot be looked at."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def changed(self) -> float:
        """The later of mtime and ctime, seconds since 1970."""
        return max(self.mtime_ns, self.ctime_ns) / 1e9


@dataclass(frozen=True, slots=True)
class StoredAt:
    """Where a mapped table lies, so that another process gets the place and not the numbers."""

    path: str
    inode: int
    checksum: int

    def is_there(self) -> bool:
        """Whether the file at ``path`` is still the one that was mapped."""
        found = Stamp.of(Path(self.path))
        return found is not None and found.inode == self.inode

    def open(self) -> TruthTable:
        """Map it again.

        Raises:
            ValueError: it is gone, or another one lies there, since it was sent.
        """
        found = _load(Path(self.path), None)
        if found is None or found.truths.stored != self:
            raise ValueError(f"{self.path}: the table has gone from the cache while processes were being started")
        return found.truths


def cache_folder() -> Path:
    """Where tables are kept."""
    if given := os.environ.get("DETKIT_CACHE"):
        return Path(given)
    own = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local"}
    home = os.environ.get("XDG_CACHE_HOME") or own.get(sys.platform, "~/.cache")
    return Path(home).expanduser() / "detkit" / "tables"


def through_cache(path: Path, options: Sequence[str], read: Callable[[], Opened]) -> Opened:
    """What ``read`` makes of the annotation file at ``path``; from the cache where it is there, else put there.

    Args:
        path: the file.
        options: all else that decides what ``read`` gives.
        read: parses and checks the file.

    Raises:
        ValueError: from ``read``. The cache itself never fails: without it, ``read`` is all there is.
    """
    stamp = Stamp.of(path)
    if stamp is None or stamp.size < SMALLEST:
        return read()
    folder = cache_folder() / _key(path, options)
    table = folder / "table"
    if (found := _taken(table, stamp)) is not None:
        return found
    with _alone_in(folder) as is_alone:
        if is_alone and (found := _taken(table, stamp)) is not None:
            return found  # by the process that was waited for
        opened = read()
        is_settled = time.time() - stamp.changed > SETTLED and Stamp.of(path) == stamp
        if is_alone and is_settled and opened.is_exact and _save(table, opened, stamp):
            return _load(table, stamp) or opened
        return opened


def _key(path: Path, options: Sequence[str]) -> str:
    parts = [_code(), str(path), os.path.abspath(path), sys.byteorder, *options]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """A digest of the code that reads and checks: a table that another version made is not this one's."""
    texts = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Whether this process alone is at work in ``folder``; False where it can neither be made nor locked."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claim(folder, wait=PATIENCE))
            is_alone = True
        except (OSError, FolderInUseError) as error:
            logger.debug("the table is not kept: %s", error)
            is_alone = False
        yield is_alone


def _taken(table: Path, stamp: Stamp) -> Opened | None:
    found = _load(table, stamp)
    return found if found is not None and _all_there(found.truths.files) else None


def _all_there(files: Sequence[str]) -> bool:
    listings = Listings()
    return all(file in listings for file in files)


def _save(table: Path, opened: Opened, stamp: Stamp) -> bool:
    """Whether the table could be written."""
    arrays = {name: np.ascontiguousarray(getattr(opened.truths, name)) for name in _ARRAYS}
    files = opened.truths.files
    arrays |= {"files.letters": files.letters, "files.ends": files.ends}
    if opened.truths.landmarks is not None:
        arrays["landmarks.points"] = np.ascontiguousarray(opened.truths.landmarks.points)
    places, end = {}, 0
    for name, array in arrays.items():
        places[name] = [array.dtype.str, list(array.shape), end]
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
    head = {
        "stamp": list(stamp),
        "arrays": places,
        "size": end,
        "names": opened.categories.names,
        "ids": opened.categories.ids,
        "landmarks": opened.categories.landmarks,
        "report": asdict(opened.report),
    }
    text = json.dumps(head).encode()
    text += b" " * (-(len(text) + 32) % _ALIGNED)

    def write(path: Path) -> None:
        with open(path, "w+b") as stream:
            checksum = _write_body(stream, text, arrays)
            stream.seek(0)
            stream.write(_MAGIC + checksum.to_bytes(8, "little"))

    try:
        atomic_write(table, write)
    except OSError as error:  # a full disk, say
        logger.debug("the table is not kept: %s", error)
        return False
    return True


def _write_body(stream: BinaryIO, text: bytes, arrays: dict[str, np.ndarray]) -> int:
    """Write head and arrays behind the place of magic and checksum; returns the checksum."""
    stream.seek(len(_MAGIC) + 8)
    checksum = 0
    for part in (len(text).to_bytes(8, "little"), text, *arrays.values()):
        data = part if isinstance(part, bytes) else part.reshape(-1).view(np.uint8).data
        padding = b"" if isinstance(part, bytes) else bytes(-len(data) % _ALIGNED)
        for piece in (data, padding):
            checksum = zlib.crc32(piece, checksum)
            stream.write(piece)
    return checksum


def _load(table: Path, stamp: Stamp | None) -> Opened | None:
    """The table of the file that has ``stamp``, mapped; None where there is none, or it is of another state or damaged.

    Mapped copy-on-write: pages are shared until somebody writes to them, and the arrays are as writable as any.
    """
    try:
        with open(table, "rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            inode = os.fstat(stream.fileno()).st_ino
    except (OSError, ValueError):
        return None
    start = len(_MAGIC) + 8
    checksum = int.from_bytes(content[len(_MAGIC) : start], "little")
    is_whole = zlib.crc32(memoryview(content)[start:]) == checksum and len(content) > start  # of nothing it is 0
    if content[: len(_MAGIC)] != _MAGIC or not is_whole:
        return None
    first = start + 8 + int.from_bytes(content[start : start + 8], "little")
    head = json.loads(content[start + 8 : first])
    if stamp is not None and head["stamp"] != list(stamp):
        return None
    arrays = {
        name: np.ndarray(shape, dtype, content, first + offset)
        for name, (dtype, shape, offset) in head["arrays"].items()
    }
    files = Strings(arrays.pop("files.letters"), arrays.pop("files.ends"))
    categories = Categories(tuple(head["names"]), tuple(head["ids"]), tuple(head["landmarks"]))
    points = arrays.pop("landmarks.points", None)
    landmarks = None if points is None else Landmarks(points, categories.mirror)
    truths = TruthTable(files=files, landmarks=landmarks, stored=StoredAt(str(table), inode, checksum), **arrays)
    report = head["report"]
    findings = tuple(Finding(**{**f, "examples": tuple(f["examples"])}) for f in report["findings"])
    return Opened(categories, truths, DataReport(**{**report, "findings": findings}))
