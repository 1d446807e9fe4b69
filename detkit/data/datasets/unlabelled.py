"""Images without annotations, to be predicted on: files, folders, and the frames of a video."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from detkit.data.datasets.base import DataReport, DetectionDataset
from detkit.data.datasets.files import walk
from detkit.data.decode import FORMATS, ImageError, read_image
from detkit.pictures.draw import is_own_png
from detkit.structures import Categories, GroundTruth

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".jp2")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")

#: Frames a second of a video that does not say, or says what no film has.
_FPS, _MOST_FPS = 25.0, 1000.0

#: What ``input`` may be, in words.
TAKEN = "a file or a folder is taken, no pattern and no list"


class Picture(NamedTuple):
    """``image`` is uint8 (H, W, 3) RGB; ``number`` counts from 1 over all that is there to read."""

    number: int
    file: str
    image: np.ndarray


class ImageFiles:
    """One image, or those in a folder and below, by name, links followed. One is read after another, however many.

    ``faults`` names what could not be read so far. ``own`` counts the pictures that are left out since detkit drew
    them, ``others`` the files that are no images, by their ending.

    Args:
        path: a file, or a folder.

    Raises:
        ValueError: there is nothing at ``path``, or no image in it.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        _check_exists(path)
        self.faults: list[str] = []
        self.own = 0
        self.others: Counter[str] = Counter()
        self.files = [path] if path.is_file() else sorted(self._images_below(path))
        if not self.files:
            own = f", but for {self.own} that detkit drew" * bool(self.own)
            raise ValueError(
                f"input: no image in {path}{own}; looked for {', '.join(IMAGE_SUFFIXES)} ({', '.join(FORMATS)})"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Picture]:
        for number, file in enumerate(self.files, start=1):
            try:
                yield Picture(number, str(file), read_image(str(file)))
            except ImageError as error:
                self.faults.append(str(error))

    def _images_below(self, folder: Path) -> Iterator[Path]:
        for place, _, names in walk(folder, self._note):
            for file in (Path(place) / name for name in names):
                if file.suffix.lower() not in IMAGE_SUFFIXES:
                    self.others[file.suffix or "without ending"] += 1
                elif is_own_png(file):
                    self.own += 1
                else:
                    yield file

    def _note(self, error: OSError) -> None:
        self.faults.append(f"{error.filename}: {error.strerror}")


class VideoFrames:
    """The frames of a video, until none comes: what its header says of their number may be missing or wrong.

    ``expected`` is that number, None where there is none; ``faults`` tells, once the frames were read, whether it ended
    too early.

    Args:
        path: the file.

    Raises:
        ValueError: the file cannot be read as a video.
    """

    def __init__(self, path: str | Path) -> None:
        _check_exists(Path(path))
        self.faults: list[str] = []
        self._path = str(path)
        self._capture = cv2.VideoCapture(self._path)
        self._first = self._read()
        if self._first is None:
            raise ValueError(f"input: {path} cannot be read as a video")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= _MOST_FPS else _FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.expected = int(count) if math.isfinite(count) and count >= 1 else None

    def __iter__(self) -> Iterator[Picture]:
        number, image = 0, self._first
        self._first = None
        while image is not None:
            number += 1
            yield Picture(number, f"{self._path}#{number}", image)
            image = self._read()
        if self._ended_early(number):
            self.faults.append(
                f"{self._path}: cut off: it ends after {number} of the {self.expected} frames it tells of"
            )

    def _read(self) -> np.ndarray | None:
        good, frame = self._capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if good else None

    def _ended_early(self, number: int) -> bool:
        """By time too: where frames come at uneven times, the number in a header is only reckoned from the length."""
        if self.expected is None or number >= self.expected:
            return False
        seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return seconds * self.fps < self.expected - 1.5


class InMemory(DetectionDataset):
    """Pictures that have been read, as a data set without boxes; image ids are their numbers.

    Args:
        pictures: at least one.
        categories: the classes that are to be found.
    """

    def __init__(self, pictures: Sequence[Picture], categories: Categories) -> None:
        self._pictures = pictures
        self.categories = categories
        self.truths = [_blank(p.number, p.file, (p.image.shape[0], p.image.shape[1])) for p in pictures]
        self.report = DataReport(pictures[0].file, len(pictures), 0, 0, len(categories), ())

    def read(self, index: int) -> np.ndarray:
        return self._pictures[index].image


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"input: no file or folder {str(path)!r}; {TAKEN}")


def _blank(image_id: int, file: str, size: tuple[int, int]) -> GroundTruth:
    return GroundTruth(
        image_id, file, size, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool),
        np.zeros(0, np.int64),
    )  # fmt: skip
