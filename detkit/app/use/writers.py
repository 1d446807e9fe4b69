"""The forms in which detections are written: COCO's results, a table, YOLO's labels, and tasks for Label Studio.

Each image is written as it comes: whatever ends a prediction, what was found before stays. The first two hold all that
is found with its score; the others are labels, for people to correct or a detector to learn, of what scores enough.
"""

from __future__ import annotations

import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import yaml

from detkit.config import ConfigError
from detkit.evaluation.results import Results, keypoint_rows
from detkit.structures import Categories, ImageMeta
from detkit.structures.landmarks import VISIBLE
from detkit.utils.files import JsonList, atomic_write, named

#: Of a key point in Label Studio, in per cent of the image's width.
_POINT_WIDTH = 0.5


class Place(NamedTuple):
    """Where detections go, and what they are of.

    ``folder``: to write into, which exists. ``images``: the folder of the images; None for the frames of a video.
    ``prefix``: what stands before a path below ``images`` in a task of Label Studio's; None has the path as it is.
    """

    folder: Path
    images: Path | None
    prefix: str | None = None

    def name(self, file: str, number: int) -> Path:
        """What image ``number``, ``file``, is called without its ending; a frame has its video's and its number."""
        if self.images is None:
            return Path(f"{Path(file).stem}_{number:06d}")
        return Path(file).relative_to(self.images).with_suffix("")

    def address(self, file: str) -> str:
        """Of an image, for Label Studio."""
        if self.prefix is None or self.images is None:
            return file
        return self.prefix + quote(Path(file).relative_to(self.images).as_posix())


class DetectionWriter(ABC):
    """Takes what was found, image by image; ``count`` is how many detections it has so far.

    Args:
        place: what it writes into and where the images are.
        categories: of the detector.
    """

    #: Whether it is given only what scores enough to be drawn.
    holds_labels: ClassVar[bool] = False

    def __init__(self, place: Place, categories: Categories) -> None:
        self.count = 0
        self.points: tuple[str, ...] | None = None  # names of the landmarks, which the first image tells
        self.place, self.folder, self.categories = place, place.folder, categories
        self.labels = {int(category): label for label, category in enumerate(categories.ids)}

    def add(self, results: Results, meta: ImageMeta, number: int, extra: Sequence[Mapping[str, Any]]) -> None:
        """Write the ``results`` of one image, px of the original; ``number`` counts the images from 1.

        Args:
            extra: for each detection what else is known of it; only COCO's form has a place for it.

        Raises:
            OSError: they cannot be written; the error names the file.
        """
        if self.points is None:
            self.points = self._names_of_points(results)
            self.begin(self.points)
        self.write(results, meta, number, extra)
        self.count += len(results)

    def begin(self, points: Sequence[str]) -> None:
        """The first image has come; ``points`` are the names of the landmarks of each detection, none without any."""
        return

    @abstractmethod
    def write(self, results: Results, meta: ImageMeta, number: int, extra: Sequence[Mapping[str, Any]]) -> None:
        """As :meth:`add`."""

    def close(self) -> None:
        """All images have come."""
        return

    def names(self, results: Results) -> list[str]:
        """The class of each detection."""
        return [self.categories.names[self.labels[int(category)]] for category in results.category_ids]

    def _names_of_points(self, results: Results) -> tuple[str, ...]:
        num, names = 0 if results.landmarks is None else results.landmarks.shape[1], self.categories.landmarks
        return names if len(names) == num else tuple(f"point{i}" for i in range(1, num + 1))


def _points_of(results: Results) -> list[list[list[float]]]:
    """Of each detection x, y px of its landmarks; none without any."""
    return [[] for _ in range(len(results))] if results.landmarks is None else results.landmarks.tolist()


class CocoWriter(DetectionWriter):
    """``detections.json``: COCO's results rows, with the file beside the image's number, and ``keypoints`` where the
    detector finds landmarks."""

    def __init__(self, place: Place, categories: Categories) -> None:
        super().__init__(place, categories)
        self._rows = JsonList(self.folder / "detections.json")

    def write(self, results: Results, meta: ImageMeta, number: int, extra: Sequence[Mapping[str, Any]]) -> None:
        columns = (results.category_ids.tolist(), results.boxes.tolist(), results.scores.tolist())
        of_image = {"image_id": meta.image_id, "file_name": meta.file}
        self._rows.extend(
            {**of_image, "category_id": category, "bbox": box, "score": score, **points, **more}
            for category, box, score, points, more in zip(*columns, keypoint_rows(results), extra, strict=True)
        )

    def close(self) -> None:
        self._rows.close()


class CsvWriter(DetectionWriter):
    """``detections.csv``: a row for each detection, corners and landmarks in px of the image."""

    COLUMNS = ("file", "image_id", "class", "category_id", "score", "x1", "y1", "x2", "y2")

    def __init__(self, place: Place, categories: Categories) -> None:
        super().__init__(place, categories)
        self._path = self.folder / "detections.csv"
        with named(self._path):
            self._file = open(self._path, "w", newline="", encoding="utf-8")  # noqa: SIM115 - until close()
        self._writer = csv.writer(self._file)

    def begin(self, points: Sequence[str]) -> None:
        with named(self._path):
            self._writer.writerow([*self.COLUMNS, *(f"{name}_{side}" for name in points for side in "xy")])

    def write(self, results: Results, meta: ImageMeta, number: int, extra: Sequence[Mapping[str, Any]]) -> None:
        columns = (self.names(results), results.category_ids.tolist(), results.scores.tolist(), results.boxes.tolist())
        with named(self._path):
            for name, category, score, (x, y, w, h), points in zip(*columns, _points_of(results), strict=True):
                sides = (x, y, x + w, y + h, *(value for point in points for value in point))
                self._writer.writerow([meta.file, meta.image_id, name, category, score, *sides])
            self._file.flush()

    def close(self) -> None:
        with named(self._path), self._file:
            os.fsync(self._file.fileno())


class YoloWriter(DetectionWriter):
    """``labels/NAME.txt`` for each image NAME, in subfolders as it is: class, centre and size in shares of the image,
    and x y 2 of each landmark (2: seen, as in labels of poses). ``classes.txt`` has the classes, and with landmarks
    ``data.yaml`` their number. An image without detections has an empty file. ``data=yolo`` reads them.

    Raises:
        ConfigError: there are labels already, or the name of a class has a line break.
    """

    holds_labels = True

    def __init__(self, place: Place, categories: Categories) -> None:
        super().__init__(place, categories)
        self._labels = self.folder / "labels"
        if next(self._labels.rglob("*.txt"), None):
            raise ConfigError(
                f"output: {self._labels} has labels already, which are not written over; choose another folder"
            )
        if broken := [name for name in categories.names if "\n" in name or "\r" in name]:
            raise ConfigError(
                f"format=yolo: the class {broken[0]!r} has a line break, which would shift the classes after it in "
                "classes.txt; choose another format, or another name in the data (convert merge=)"
            )
        with named(self._labels):
            self._labels.mkdir(exist_ok=True)
        atomic_write(self.folder / "classes.txt", "".join(f"{name}\n" for name in categories.names))

    def begin(self, points: Sequence[str]) -> None:
        if points:
            said = {"names": dict(enumerate(self.categories.names)), "kpt_shape": [len(points), 3]}
            atomic_write(self.folder / "data.yaml", yaml.safe_dump(said, sort_keys=False, allow_unicode=True))

    def write(self, results: Results, meta: ImageMeta, number: int, extra: Sequence[Mapping[str, Any]]) -> None:
        height, width = meta.original_size
        lines = []
        columns = (results.category_ids.tolist(), results.boxes.tolist())
        for category, (x, y, w, h), points in zip(*columns, _points_of(results), strict=True):
            shares = [f"{v:.6f}" for v in ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)]
            marked = [f"{px / width:.6f} {py / height:.6f} {VISIBLE}" for px, py in points]
            lines.append(" ".join([str(self.labels[category]), *shares, *marked]) + "\n")
        path = self._labels / f"{self.place.name(meta.file, number)}.txt"
        with named(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, "".join(lines))


class LabelStudioWriter(DetectionWriter):
    """``label_studio.json``: a task for each image, with what was found as a prediction to be corrected, landmarks as
    points that belong to their box; its labelling interface is in ``label_studio.xml``."""

    holds_labels = True

    def __init__(self, place: Place, categories: Categories) -> None:
        super().__init__(place, categories)
        self._tasks = JsonList(self.folder / "label_studio.json")

    def begin(self, points: Sequence[str]) -> None:
        atomic_write(self.folder / "label_studio.xml", _interface(self.categories.names, points))

    def write(self, results: Results, meta: ImageMeta, number: int, extra: Sequence[Mapping[str, Any]]) -> None:
        columns = (self.names(results), results.boxes.tolist(), results.scores.tolist())
        found = [_region(i, meta, *one) for i, one in enumerate(zip(*columns, strict=True))]
        for i, points in enumerate(_points_of(results)):
            named_points = zip(self.points or (), points, strict=True)
            found += [_point(i, meta, name, point) for name, point in named_points]
        score = float(results.scores.mean()) if len(results) else 0.0
        prediction = {"model_version": "detkit", "score": score, "result": found}
        self._tasks.extend([{"data": {"image": self.place.address(meta.file)}, "predictions": [prediction]}])

    def close(self) -> None:
        self._tasks.close()


def _region(number: int, meta: ImageMeta, name: str, box: Sequence[float], score: float) -> dict[str, Any]:
    """A rectangle of Label Studio's, whose numbers are per cent of the image."""
    height, width = meta.original_size
    x, y, w, h = (100 * value / side for value, side in zip(box, (width, height, width, height), strict=True))
    return {
        **_in_image(meta, f"box{number}", "label", "rectanglelabels"),
        "score": score,
        "value": {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [name]},
    }


def _point(number: int, meta: ImageMeta, name: str, point: Sequence[float]) -> dict[str, Any]:
    """A key point of Label Studio's, which belongs to the rectangle of that ``number``."""
    height, width = meta.original_size
    x, y = 100 * point[0] / width, 100 * point[1] / height
    return {
        **_in_image(meta, f"box{number}_{name}", "point", "keypointlabels"),
        "parentID": f"box{number}",
        "value": {"x": x, "y": y, "width": _POINT_WIDTH, "keypointlabels": [name]},
    }


def _in_image(meta: ImageMeta, name: str, control: str, kind: str) -> dict[str, Any]:
    """What all regions of Label Studio's say."""
    height, width = meta.original_size
    return {
        "id": name,
        "type": kind,
        "from_name": control,
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }


def _interface(names: Sequence[str], points: Sequence[str]) -> str:
    controls = _control("RectangleLabels", "label", names)
    controls += _control("KeyPointLabels", "point", points) if points else ""
    return f'<View>\n  <Image name="image" value="$image"/>\n{controls}</View>\n'


def _control(kind: str, name: str, labels: Sequence[str]) -> str:
    lines = "".join(f"    <Label value={quoteattr(label)}/>\n" for label in labels)
    return f'  <{kind} name="{name}" toName="image">\n{lines}  </{kind}>\n'


_WRITERS: dict[str, type[DetectionWriter]] = {
    "coco": CocoWriter,
    "csv": CsvWriter,
    "yolo": YoloWriter,
    "label_studio": LabelStudioWriter,
}


#: What a prediction leaves, in whatever form; YOLO's labels are looked at by their writer.
_LEFT = ("detections.json", "detections.csv", "label_studio.json", "detections.mp4")


def refuse_found(folder: Path, key: str) -> None:
    """Refuse a folder with detections: files of two predictions would lie in it together.

    Args:
        key: which names the folder.

    Raises:
        ConfigError: as it says.
    """
    if there := [str(folder / name) for name in _LEFT if (folder / name).exists()]:
        raise ConfigError(f"{key}: {there[0]} is there already, and nothing is written over: choose another folder")


def detection_writer(form: str, place: Place, categories: Categories) -> DetectionWriter:
    """The writer of that form, one of PredictOptions' ``format``."""
    return _WRITERS[form](place, categories)
