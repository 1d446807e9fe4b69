"""Images without annotations, to be predicted on: files, folders, and the frames of a video."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from detkit.data.datasets.base import DataReport, DetectionDataset
from detkit.data.decode import FORMATS, ImageError, read_image, read_size
from detkit.structures import Categories, GroundTruth

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".jp2")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class ImageFiles(DetectionDataset):
    """One image, or those in a folder and below, by name; image ids count from 1.

    Args:
        path: a file, or a folder.
        categories: the classes that will be looked for.

    Raises:
        ValueError: there is nothing at ``path``, or no image in it.
    """

    def __init__(self, path: str | Path, categories: Categories) -> None:
        path = Path(path)
        if not path.exists():
            raise ValueError(f"input: no file or folder {str(path)!r}")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ValueError(
                f"input: no image in {path}; looked for {', '.join(IMAGE_SUFFIXES)} ({', '.join(FORMATS)})"
            )
        self.categories = categories
        self.truths = [_blank(i + 1, str(file), read_size(str(file))) for i, file in enumerate(files)]
        self.report = DataReport(str(path), len(files), 0, 0, len(categories), ())

    def read(self, index: int) -> np.ndarray:
        return read_image(self.truths[index].file)


class VideoFrames(DetectionDataset):
    """The frames of a video, read one after another; image ids count from 1.

    Args:
        path: the file.
        categories: the classes that will be looked for.

    Raises:
        ValueError: the file cannot be read as a video.
    """

    def __init__(self, path: str | Path, categories: Categories) -> None:
        self._path = str(path)
        self._capture = cv2.VideoCapture(self._path)
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if not self._capture.isOpened() or count < 1:
            raise ValueError(f"input: {path} cannot be read as a video")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        size = tuple(int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        self.categories = categories
        self.truths = [_blank(i + 1, f"{path}#{i + 1}", (size[0], size[1])) for i in range(count)]
        self.report = DataReport(self._path, count, 0, 0, len(categories), ())
        self._next = 0

    def read(self, index: int) -> np.ndarray:
        """Frame ``index``; in order it is decoded once, out of order the video is searched.

        Raises:
            ImageError: the frame cannot be decoded.
        """
        if index != self._next:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        good, frame = self._capture.read()
        self._next = index + 1
        if not good:
            raise ImageError(f"{self._path}: frame {index + 1} of {len(self)} cannot be decoded")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _blank(image_id: int, file: str, size: tuple[int, int]) -> GroundTruth:
    return GroundTruth(
        image_id, file, size, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool),
        np.zeros(0, np.int64),
    )  # fmt: skip
