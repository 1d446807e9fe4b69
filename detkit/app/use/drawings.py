"""Where drawn pictures go: files in a folder, or the frames of one video."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from detkit.data.datasets.unlabelled import Picture
from detkit.pictures.draw import encode_png
from detkit.utils.files import write_picture

#: Bytes of a picture's name that are kept: file systems take 255, of which number and ending need some.
_LONGEST = 200

#: Of the disk, not of one file: the next picture cannot be written either.
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def numbered(number: int, file: str) -> str:
    """The name, without its ending, of what is written for picture ``number``, ``file``: no two are alike."""
    stem = Path(file).stem.encode(errors="surrogateescape")[:_LONGEST].decode(errors="ignore")
    return f"{number:06d}_{stem}"


class Drawings(ABC):
    """Takes pictures as they are drawn. ``faults`` names those that could not be written so far."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    @abstractmethod
    def add(self, picture: Picture, drawn: np.ndarray) -> None:
        """Write ``drawn``, uint8 (H, W, 3) RGB, which is ``picture`` with its boxes.

        Raises:
            OSError: nothing more can be written there, since the disk is full, say.
        """

    @abstractmethod
    def close(self) -> None:
        """All pictures have come."""


class PictureFolder(Drawings):
    """A PNG for each picture, named by its number and its file.

    Args:
        folder: must exist when the first picture comes.
        inputs: files that are not overwritten.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path]) -> None:
        super().__init__()
        self._folder = folder
        self._inputs = {path.resolve() for path in inputs}

    def add(self, picture: Picture, drawn: np.ndarray) -> None:
        path = self._folder / f"{numbered(picture.number, picture.file)}.png"
        if path.resolve() in self._inputs:
            self.faults.append(f"{path}: not written, since it is one of the pictures to look at")
            return
        try:
            write_picture(path, encode_png(drawn))
        except OSError as error:
            if error.errno in _HOPELESS:
                raise
            self.faults.append(f"{path}: {error.strerror}")

    def close(self) -> None: ...


class Film(Drawings):
    """One MP4 video; its size is that of the first picture."""

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__()
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._count = 0

    def add(self, picture: Picture, drawn: np.ndarray) -> None:
        if self._writer is None:
            self._size = (drawn.shape[1], drawn.shape[0])
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size)
        if (drawn.shape[1], drawn.shape[0]) != self._size:  # the writer would leave it out without a word
            drawn = cv2.resize(drawn, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        self._count += 1

    def close(self) -> None:
        """Finish the video, and look whether all of it is there: its writer tells of no error."""
        if self._writer is None:
            return
        self._writer.release()
        there = int(cv2.VideoCapture(str(self._path)).get(cv2.CAP_PROP_FRAME_COUNT)) if self._path.is_file() else 0
        if there < 1:
            self._path.unlink(missing_ok=True)  # what there is cannot be played
        if there != self._count:
            self.faults.append(f"{self._path}: {max(there, 0)} of {self._count} frames could be written")
