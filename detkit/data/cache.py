"""Pictures that were made ready once, in one file that all workers, processes and runs share.

The file is a log. Behind its head, which tells where the log ends, stand the entries: a head of ``_HEAD`` bytes with
the entry's key, size and checksum, and its pixels. Who adds one holds a lock, writes it behind the end, and only then
moves the end: what a killed process has left half-written is beyond it, and the next one writes over it. A power cut
may leave an end whose pixels never reached the disk: a head that is damaged ends the log there, and pixels that are
not those of their checksum are made anew.

Nothing is ever thrown out. Each epoch shows each image once, so what was thrown out to make room is missed just as
much as what finds no room, and the file would be written in every epoch.

Reads are by position and not through a map of the file: as quick, since the system keeps the pages in memory either
way, and a file that is cut off by somebody is a miss then and not the end of the process.
"""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit.config import CACHES
from detkit.data.datasets.stored import cache_folder
from detkit.utils.files import output_folder
from detkit.utils.lock import turn
from detkit.utils.log import logger

_MAGIC = b"detkit images 1\n"
_END = struct.Struct("<16sQ")
_ENTRY = struct.Struct("<16sIIQ")
#: Bytes of the file's head and of an entry's, to multiples of which pixels are filled up.
_HEAD = 64

#: Seconds to wait for another process that adds an image; then this one is left for another time.
_PATIENCE = 1.0


class _Place(NamedTuple):
    """Where the pixels (h, w, 3) of an entry begin, and their checksum."""

    start: int
    h: int
    w: int
    checksum: int


@CACHES
class ImageCache:
    """Images as they are before anything is drawn by chance: decoded, and resized where one size is always meant.

    They are taken from one file in ``folder``, or put there, under the path, size and times of their own file and all
    that was done to their pixels: another size, or a picture that was changed, is another entry. Once the file is full
    it stays as it is; it may be deleted at any time.

    Args:
        gigabytes: how large the file may become, in 10^9 bytes.
        folder: where it lies, such as one in /dev/shm to have it in memory alone; null for ``images`` beside the
            tables of annotations (``DETKIT_CACHE``, or detkit's place in the user's cache folder).

    Raises:
        ValueError: ``gigabytes`` is not positive, or the folder cannot be written to.
    """

    def __init__(self, *, gigabytes: float = 10.0, folder: str | None = None) -> None:
        if not gigabytes > 0:
            raise ValueError(f"gigabytes must be positive, not {gigabytes:g}")
        self.bound = int(gigabytes * 1e9)
        self.path = (cache_folder().parent / "images" if folder is None else Path(folder)) / "images.cache"
        self._open()

    def find(self, key: bytes) -> np.ndarray | None:
        """The image uint8 (H, W, 3) under ``key`` (16 bytes), to be had as one's own; None where there is none."""
        if key not in self._places:
            self._look_further()
        place = self._places.get(key)
        if place is None:
            return None
        size = place.h * place.w * 3
        pixels = np.empty(_filled_up(size), np.uint8)
        if self._read(pixels, place.start) and _checksum(pixels) == place.checksum:
            return pixels[:size].reshape(place.h, place.w, 3)
        del self._places[key]
        return None

    def keep(self, key: bytes, image: np.ndarray) -> None:
        """Put ``image`` uint8 (H, W, 3) under ``key``, where there is room and no other process is in the way."""
        pixels = np.zeros(_filled_up(image.size), np.uint8)
        pixels[: image.size] = image.reshape(-1)
        if self._is_broken or self._end + _HEAD + len(pixels) > self.bound:
            return
        try:
            with self._alone() as is_alone:
                if is_alone:
                    self._add(key, image.shape[0], image.shape[1], pixels)
        except OSError as error:  # a full disk, say
            self._is_broken = True
            logger.warning("image cache %s: %s; no more images are kept", self.path, error.strerror or error)

    def holds(self, size: tuple[int, int]) -> bool:
        """Whether an empty cache has room for an image of ``size`` (h, w) px."""
        return self.size_of(size) + _HEAD <= self.bound

    @staticmethod
    def size_of(size: tuple[int, int]) -> int:
        """Bytes that an image of ``size`` (h, w) px takes."""
        return _HEAD + _filled_up(size[0] * size[1] * 3)

    def __getstate__(self) -> dict[str, Any]:
        return {"bound": self.bound, "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._places: dict[bytes, _Place] = {}
        self._end = _HEAD
        self._is_broken = False
        try:
            with output_folder(self.path.parent):
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            weakref.finalize(self, os.close, self._file)
            with self._alone() as is_alone:
                if is_alone and os.fstat(self._file).st_size < _HEAD:
                    self._write(_END.pack(_MAGIC, _HEAD).ljust(_HEAD, b"\0"), 0)
        except OSError as error:
            where = error.filename or self.path
            raise ValueError(f"folder {self.path.parent}: {where}: {error.strerror or error}") from error
        if os.pread(self._file, len(_MAGIC), 0) != _MAGIC:
            raise ValueError(f"{self.path} is no image cache of this version: delete it, or name another folder")
        self._look_further()

    def _alone(self) -> AbstractContextManager[bool]:
        """Whether this process alone may write within the block."""
        return turn(self.path.with_name(".images.lock"), _PATIENCE)

    def _add(self, key: bytes, h: int, w: int, pixels: np.ndarray) -> None:
        self._look_further()
        end = self._end + _HEAD + len(pixels)
        if key in self._places or end > self.bound:
            return
        place = _Place(self._end + _HEAD, h, w, _checksum(pixels))
        head = _ENTRY.pack(key, h, w, place.checksum)
        self._write((head + zlib.crc32(head).to_bytes(4, "little")).ljust(_HEAD, b"\0"), self._end)
        self._write(pixels.data, place.start)
        self._write(_END.pack(_MAGIC, end), 0)
        self._places[key], self._end = place, end

    def _look_further(self) -> None:
        """Learn of the entries that others have added since."""
        head = os.pread(self._file, _END.size, 0)
        end = _END.unpack(head)[1] if len(head) == _END.size else _HEAD  # somebody has emptied the file
        if end < self._end:  # another has found the log damaged, and writes it anew from there
            self._places.clear()
            self._end = _HEAD
        while self._end < end:
            head = os.pread(self._file, _ENTRY.size + 4, self._end)
            if zlib.crc32(head[: _ENTRY.size]).to_bytes(4, "little") != head[_ENTRY.size :]:
                return
            key, h, w, checksum = _ENTRY.unpack_from(head)
            self._places[key] = _Place(self._end + _HEAD, h, w, checksum)
            self._end += _HEAD + _filled_up(h * w * 3)

    def _read(self, into: np.ndarray, start: int) -> bool:
        """Whether the file has so many bytes."""
        return os.preadv(self._file, [into.data], start) == len(into)

    def _write(self, content: bytes | memoryview, start: int) -> None:
        while content:
            written = os.pwrite(self._file, content, start)
            content, start = content[written:], start + written


def _filled_up(size: int) -> int:
    return -(-size // _HEAD) * _HEAD


def _checksum(pixels: np.ndarray) -> int:
    """What tells pixels from a page that was lost, at the speed of memory: a CRC would take longer than the read."""
    return int(pixels.view(np.uint64).sum(dtype=np.uint64))
