"""detkit from Python: a trained detector on images, a detector for a loop of one's own, and a run from a notebook.

``detkit.load``, ``detkit.create`` and ``detkit.train``; nothing of Hydra is needed before or left behind.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from detkit.app.assemble.schema import ModelSection, PredictOptions, TrainSchema
from detkit.app.assemble.stored import Stored, load_stored
from detkit.app.cli.composer import Composer
from detkit.app.run.folder import RunFolder
from detkit.app.train import train_in
from detkit.app.use.predict import UNKNOWN, Detection, Found
from detkit.config import ConfigError, validate
from detkit.config.ranges import check_range
from detkit.data.datasets.unlabelled import ImageFiles, Picture
from detkit.data.decode import ImageError, pixels_of
from detkit.data.workers import worker_deaths_explained
from detkit.evaluation.results import restore
from detkit.models import Detector, build_detector
from detkit.pictures.draw import draw_boxes
from detkit.structures import Categories

#: Keys of ``detkit predict`` that a :class:`Predictor` has no use for, and what there is instead.
_NOT_LOADED = {
    "checkpoint": "it is the first argument",
    "input": "give the images to predict() or stream()",
    "output": "nothing is written: to_list() gives plain values and draw() a picture",
    "format": "nothing is written: a prediction has arrays, and to_list() gives plain values",
    "image_prefix": "nothing is written: a prediction has the file's name",
    "score_threshold": "a prediction has all that was found: predict(...).above(SCORE) leaves out what scores less",
}

#: Keys of Hydra's, and the arguments of :func:`train` in their place.
_OF_HYDRA = {
    "hydra.run.dir": "folder= names the folder of the run",
    "hydra.searchpath": "own_configs= names a folder of one's own configurations",
}

#: Why :func:`create` refuses a key.
_OUTSIDE = "nothing but a model is made here: give keys of model (model.neck.out_channels, model/neck)"

#: What :meth:`Predictor.predict` takes for one image: a file, uint8 (H, W, 3) RGB, or a picture of Pillow's.
ImageLike = str | Path | np.ndarray | Image.Image


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a detector found in one image; the best score first.

    Attributes:
        boxes: (N, 4) float64, x1 y1 x2 y2 in px of the original image, inside it.
        scores: (N,) float64 in [0, 1].
        labels: (N,) int64, places in ``class_names``.
        category_ids: (N,) int64, the ids that the data set gave these classes.
        landmarks: (N, L, 2) float64, x y in px of the original image, of a detector that finds them; else None.
        landmark_names: of these L points, where the data set named them.
        unknown: (N,) bool, with ``"unknown=true"``: like none of the classes, of which ``labels`` has one nevertheless.
        class_names: of all classes of the detector.
        file: of the image; for one that came from memory a word and its place, "image 1".
        image: uint8 (H, W, 3) RGB.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    category_ids: np.ndarray
    unknown: np.ndarray
    class_names: tuple[str, ...]
    file: str
    image: np.ndarray = field(repr=False)
    landmarks: np.ndarray | None = None
    landmark_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class of each box; "unknown" where it is."""
        named = zip(self.labels, self.unknown, strict=True)
        return [UNKNOWN if unknown else self.class_names[label] for label, unknown in named]

    def above(self, score: float) -> Prediction:
        """Those of at least this score."""
        kept = self.scores >= score
        columns = ("boxes", "scores", "labels", "category_ids", "unknown")
        points = None if self.landmarks is None else self.landmarks[kept]
        return replace(self, landmarks=points, **{name: getattr(self, name)[kept] for name in columns})

    def draw(self) -> np.ndarray:
        """A copy of the image with the boxes, their classes, scores and landmarks: uint8 (H, W, 3) RGB."""
        labels = np.where(self.unknown, len(self.class_names), self.labels)
        names = [*self.class_names, UNKNOWN]
        return draw_boxes(self.image, self.boxes, labels, names, self.scores, landmarks=self.landmarks)

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values, a mapping for each box: class, category_id, score, box (x1 y1 x2 y2 px), and the landmarks
        (x y px of each) where there are any."""
        points = [{}] * len(self) if self.landmarks is None else [{"landmarks": p} for p in self.landmarks.tolist()]
        rows = zip(self.names, self.category_ids.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [
            {"class": name, "category_id": c, "score": score, "box": box, **more}
            for (name, c, score, box), more in zip(rows, points, strict=True)
        ]


class Predictor:
    """A trained detector with the transforms it was evaluated with; see :func:`load`."""

    def __init__(self, stored: Stored, options: PredictOptions) -> None:
        self._stored, self._options = stored, options
        self.class_names: tuple[str, ...] = stored.checkpoint.categories.names

    @property
    def detector(self) -> Detector:
        """The module itself, in eval mode on its device: padded images in px of the network input."""
        return self._stored.detector

    @property
    def device(self) -> torch.device:
        """Where the detector runs."""
        return self._stored.device

    def predict(self, images: ImageLike | Sequence[ImageLike]) -> Prediction | list[Prediction]:
        """What the detector finds, from its own least score on.

        Args:
            images: one image or several: a file, a folder (several), uint8 (H, W, 3) RGB, or a picture of Pillow's.

        Returns:
            a prediction for one image, a list in their order for several.

        Raises:
            ValueError: an image cannot be read, or is of another type or shape; the message names it.
        """
        if isinstance(images, (str, Path)) and Path(images).is_dir():
            return list(self.stream(ImageFiles(images).files))
        if isinstance(images, (str, Path, np.ndarray, Image.Image)):
            return next(self.stream([images]))
        return list(self.stream(images))

    def stream(self, images: Sequence[ImageLike]) -> Iterator[Prediction]:
        """As :meth:`predict`, one after another: no more than a batch is in memory.

        Raises:
            ValueError: an image cannot be read; what was found in the batches before it has been given out.
        """
        faults: list[str] = []
        detection = Detection(self._stored, self._options, faults)
        for found in detection.of(_Pictures(images)):
            yield self._prediction(found)
        if faults:
            raise ImageError("; ".join(faults))

    def _prediction(self, found: Found) -> Prediction:
        categories = self._stored.checkpoint.categories
        results = restore(found.detections, found.meta, categories)
        order = np.argsort(-results.scores, kind="stable")
        boxes = results.boxes[order]
        boxes[:, 2:] += boxes[:, :2]
        index = {category: label for label, category in enumerate(categories.ids)}
        ids = results.category_ids[order]
        labels = np.array([index[int(i)] for i in ids], np.int64)
        unknown = np.zeros(len(ids), bool) if found.unknown is None else found.unknown.numpy()[order]
        return Prediction(
            boxes,
            results.scores[order],
            labels,
            ids,
            unknown,
            categories.names,
            found.meta.file,
            found.picture.image,
            None if results.landmarks is None else results.landmarks[order],
            categories.landmarks,
        )


class _Pictures:
    """Images from wherever they are, read when they are asked for."""

    def __init__(self, images: Sequence[ImageLike]) -> None:
        self._images = images

    def __iter__(self) -> Iterator[Picture]:
        for number, image in enumerate(self._images, start=1):
            if isinstance(image, (str, Path)):
                files = ImageFiles(image)
                picture = next(iter(files), None)
                if picture is None:
                    raise ImageError(files.faults[0])
                yield picture._replace(number=number)
            else:
                yield Picture(number, f"image {number}", _pixels(image, f"image {number}"))


def _pixels(image: Any, name: str) -> np.ndarray:
    if isinstance(image, Image.Image):
        return pixels_of(image, name)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} is a {type(image).__name__}; give a file, a uint8 array (H, W, 3) RGB or a PIL image")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name} is {image.dtype} {image.shape}, not uint8 (H, W, 3) RGB with values 0 to 255")
    return image


def load(checkpoint: str | Path, *overrides: str, device: str = "auto") -> Predictor:
    """A trained detector.

    >>> predictor = detkit.load("runs/quickstart/.../best.pt")
    >>> found = predictor.predict("photo.jpg").above(0.5)
    >>> found.boxes, found.scores, found.names

    Args:
        checkpoint: ``best.pt`` or ``last.pt`` of a run, a published ``.safetensors``, an exported ``.onnx``, or a
            URL of one with its checksum, ``https://...#sha256=...``.
        overrides: as for ``detkit predict``: ``"tta=flip"``, ``"precision=bf16"``, ``"batch_size=8"``,
            ``"model.head.roi.selector.score_threshold=0.3"``.
        device: "auto" is CUDA where there is one.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
        ConfigError: an override that does not fit, with the nearest right one, or that has no use here.
    """
    _refuse_without_use(overrides, _NOT_LOADED)
    composer = Composer("predict")
    said = [f"checkpoint={checkpoint}", "input=memory", f"device={device}", *overrides]
    cfg, notes, choices = composer(*said)
    _tell(notes)
    options, stored = load_stored(cfg, PredictOptions, choices)
    check_range("batch_size", options.batch_size, 1)
    return Predictor(stored, options)


def create(model: str, categories: Sequence[str] | Categories, *overrides: str) -> Detector:
    """An untrained detector, to be trained in one's own loop.

    Called with ``(images, targets)`` it gives :class:`~detkit.structures.Losses`, with ``(images)`` alone a list of
    :class:`~detkit.structures.Detections`, boxes in px of the network input.

    >>> detector = detkit.create("faster_rcnn_fpn", ["cat", "dog"], "model/backbone=resnet18")

    Args:
        model: a preset of ``configs/model``, or ``"experiment=NAME"``: the model of that experiment.
        categories: names of the classes, in the order of the labels 0, 1, ...
        overrides: of the model, as for ``detkit train``: ``"model/neck=fpn_se"``, ``"model.backbone.weights=null"``.

    Raises:
        ConfigError: there is no such model, or an override does not fit, or is of something else than the model.
        TypeError: the categories are no names.
    """
    _refuse_without_use(overrides)
    if outside := [key for override in overrides if not _is_of_model(key := _key(override))]:
        raise ConfigError([f"{key}: {_OUTSIDE}" for key in outside])
    if not isinstance(categories, Categories):
        if isinstance(categories, str) or not all(isinstance(name, str) for name in categories):
            raise TypeError(f"categories: {categories!r} is no list of names, like ['cat', 'dog']")
        categories = Categories(tuple(categories), tuple(range(1, len(categories) + 1)))
    first = model if model.startswith("experiment=") else f"model={model}"
    cfg, notes, _ = Composer("train")(first, *overrides)
    _tell(notes)
    section = OmegaConf.create({"model": cfg.model})
    validate(section, _Model)
    return build_detector(OmegaConf.to_container(section, resolve=True)["model"], categories)  # pyright: ignore


@dataclass
class _Model:
    model: Detector | ModelSection


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder, and what ``result.json`` there says."""

    folder: Path
    result: Mapping[str, Any]

    @property
    def best(self) -> float | None:
        """The best value of the monitored metric; None without an evaluation."""
        return self.result["best"]

    @property
    def checkpoint(self) -> Path:
        """The best weights where there was an evaluation, else the last."""
        return RunFolder(self.folder).checkpoint


def train(overrides: Sequence[str], folder: str | Path | None = None, own_configs: str | Path | None = None) -> Run:
    """Train as ``detkit train`` does, in this process.

    >>> run = detkit.train(["experiment=quickstart", "trainer.steps=200"])
    >>> detkit.load(run.checkpoint)

    Args:
        overrides: what would stand on the command line, without keys of Hydra's as ``hydra.run.dir``.
        folder: of the run; by default a new one below ``run_root``.
        own_configs: a folder of one's own configurations, as ``--config-dir``.

    Raises:
        ConfigError: an override that does not fit or has no use here, or no experiment.
        TypeError: the overrides are one text.
        Interrupted: Ctrl-C; the step was finished and saved.
    """
    if isinstance(overrides, str):  # whose letters would be the overrides
        raise TypeError(f"overrides: give a list: [{overrides!r}]")
    _refuse_without_use(overrides, _OF_HYDRA)
    composer = Composer("train", None if own_configs is None else str(own_configs))
    cfg, notes, choices = composer(*overrides)
    if choices.get("sweep"):
        raise ConfigError(f"sweep={choices['sweep']} is a list of jobs: detkit train -m runs them")
    _tell(notes)
    name = choices.get("experiment") or "custom"
    chosen = Path(cfg.run_root) / name / time.strftime("%Y-%m-%d_%H-%M-%S") if folder is None else Path(folder)
    validate(cfg, TrainSchema)
    with worker_deaths_explained():
        run, _ = train_in(cfg, chosen)
    result = run.result()
    assert result is not None, "a run that comes to its end writes it"
    return Run(run.path, result)


def _key(override: str) -> str:
    return override.partition("=")[0].strip().lstrip("+~")


def _is_of_model(key: str) -> bool:
    """Whether ``key`` is of the section ``model``: ``model.neck.stride``, ``model/neck``, ``loss@model.head.loss``."""
    group, _, package = key.partition("@")
    return f"{package or group.replace('/', '.')}.".startswith("model.")


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _refuse_without_use(overrides: Sequence[str], instead: Mapping[str, str] | None = None) -> None:
    """Refuse what would do nothing: keys of Hydra's, which is not at work here, and those that there is something for
    ``instead``.

    Raises:
        ConfigError: with a line for each.
    """
    instead = instead or {}
    errors = []
    for override in overrides:
        key = _key(override)
        if key in instead:
            errors.append(f"{key}: {instead[key]}")
        elif key.startswith(("hydra.", "hydra/")):
            errors.append(f"{key}: a key of Hydra's, which does nothing here")
    if errors:
        raise ConfigError(errors)
