"""``tools/predict.py``: boxes on pictures, and a results file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich
import torch
from omegaconf import DictConfig, ListConfig
from rich.text import Text
from torch import Tensor

from detkit.app.assemble.parts import build_transforms
from detkit.app.assemble.schema import PredictOptions
from detkit.app.assemble.stored import Stored, load_stored
from detkit.app.cli.entry import run_tool
from detkit.app.run.beside import refuse_run
from detkit.app.run.next_command import tell_explanation
from detkit.app.use.drawings import Drawings, Film, PictureFolder
from detkit.app.use.writers import Place, detection_writer, refuse_found
from detkit.config import ConfigError, build
from detkit.config.ranges import check_range
from detkit.data.datasets.unlabelled import TAKEN, VIDEO_SUFFIXES, ImageFiles, InMemory, Picture, VideoFrames
from detkit.data.decode import ImageError, has_pages
from detkit.data.loader import EvalLoader
from detkit.engine.evaluation import to_device
from detkit.engine.precision import Precision, autocast, check_precision
from detkit.evaluation.results import restore
from detkit.models.export.runtime import WrongSizeError
from detkit.pictures.draw import draw_boxes
from detkit.structures import Categories, Detections, ImageMeta
from detkit.utils.files import output_folder
from detkit.utils.log import logger, set_up_logging
from detkit.utils.progress import track

#: What is written on pictures at an object of no known class.
UNKNOWN = "unknown"


class Found(NamedTuple):
    """A picture and its detections, in px of the network input, with what leads back to the file.

    ``cosines`` (D,) with the nearest class, and ``unknown`` (D,) bool; None where nobody asked.
    """

    picture: Picture
    detections: Detections
    meta: ImageMeta
    cosines: Tensor | None = None
    unknown: Tensor | None = None

    @property
    def extra(self) -> list[dict[str, Any]]:
        """What is said of each detection beyond class, box and score; nothing where nobody asked.

        Of what is unknown the class is the nearest one.
        """
        if self.cosines is None or self.unknown is None:
            return [{} for _ in self.detections.scores]
        pairs = zip(self.cosines.tolist(), self.unknown.tolist(), strict=True)
        return [{"cosine": cosine, "unknown": unknown} for cosine, unknown in pairs]


class IncompleteError(ValueError):
    """Some of the pictures could not be read or written; the message names them, and all others are done."""


def main() -> None:
    """The command line."""
    run_tool(run, "predict")


def run(cfg: DictConfig, folder: Path) -> None:
    """Predict on ``cfg.input``; pictures (or a video) and the detections go to ``cfg.output`` or a new folder.

    Raises:
        IncompleteError: after all the others, for pictures that could not be read or written.
    """
    set_up_logging()
    if isinstance(cfg.get("input", None), ListConfig):
        raise ConfigError(f"input: {TAKEN}: put what belongs together into a folder")
    options, stored = load_stored(cfg, PredictOptions)
    check_range("score_threshold", options.score_threshold, 0, 1)
    check_range("batch_size", options.batch_size, 1)
    if options.unknown and options.format != "coco":
        raise ConfigError(f"unknown=true: only format=coco has a place for it, not format={options.format}")
    source = _open(options.input)
    images = _images(source, options)
    output = Path(options.output) if options.output else folder
    drawings = _drawings(output, source, options.input)
    for refuse in (refuse_run, refuse_found):
        refuse(output, "output" if options.output else "hydra.run.dir")
    with output_folder(output):
        total = len(source) if isinstance(source, ImageFiles) else source.expected
        paged: list[str] = []
        pictures = _noting_pages(source, paged) if isinstance(source, ImageFiles) else source
        found = track(Detection(stored, options, source.faults).of(pictures), total, "predicting")
        if first := next(found, None):
            _write(chain([first], found), Place(output, images, options.image_prefix), drawings, stored, options)
        if paged:
            logger.warning("of %d files with several pages or frames the first alone was read: %s", len(paged),
                           ", ".join(paged[:3]) + ", ..." * (len(paged) > 3))  # fmt: skip
        if faults := [*source.faults, *drawings.faults]:
            raise IncompleteError("\n  ".join([f"{len(faults)} could not be read or written:", *faults]))
    tell_explanation(options.checkpoint)


def _open(path: str) -> ImageFiles | VideoFrames:
    if Path(path).is_file() and Path(path).suffix.lower() in VIDEO_SUFFIXES:
        return VideoFrames(path)
    files = ImageFiles(path)
    if files.own:
        logger.info("%d pictures in %s are detkit's own and are left out", files.own, path)
    if files.others:
        counts = ", ".join(f"{count} {ending}" for ending, count in files.others.most_common())
        logger.info("not read in %s, since they are no images: %s", path, counts)
    return files


def _noting_pages(source: ImageFiles, paged: list[str]) -> Iterator[Picture]:
    """The pictures of ``source``; ``paged`` gets the files that hold more than the one that is read."""
    for picture in source:
        if has_pages(picture.file):
            paged.append(picture.file)
        yield picture


def _drawings(output: Path, source: ImageFiles | VideoFrames, path: str) -> Drawings:
    if isinstance(source, ImageFiles):
        return PictureFolder(output, source.files)
    film = output / "detections.mp4"
    if film.exists() and film.samefile(path):
        raise ConfigError(f"output: {film} is the video that is read; choose another folder")
    return Film(film, source.fps)


def _images(source: ImageFiles | VideoFrames, options: PredictOptions) -> Path | None:
    """The folder of the images, None for a video's frames.

    Raises:
        ConfigError: the form of the detections cannot be had for them.
    """
    if options.image_prefix is not None and (options.format != "label_studio" or isinstance(source, VideoFrames)):
        raise ConfigError("image_prefix: only tasks of format=label_studio have it, for images: leave it null")
    if isinstance(source, VideoFrames):
        return None
    by_name: dict[Path, Path] = {}
    for file in source.files if options.format == "yolo" else ():
        other = by_name.setdefault(file.with_suffix(""), file)
        if other != file:
            raise ConfigError(f"format=yolo: {other} and {file} would have one file of labels, {file.stem}.txt")
    path = Path(options.input)
    return path if path.is_dir() else path.parent


def _write(found: Iterator[Found], place: Place, drawings: Drawings, stored: Stored, options: PredictOptions) -> None:
    """Write the rows and pictures of what is ``found``, each as it comes: whatever ends this, what was found stays."""
    categories, count = stored.checkpoint.categories, 0
    rows = detection_writer(options.format, place, categories)
    try:
        for one in found:
            told = one.detections
            if rows.holds_labels:
                told = told.select(told.scores > options.score_threshold)
            rows.add(restore(told, one.meta, categories), one.meta, one.picture.number, one.extra)
            count += 1  # what the file holds, also where the picture is not drawn any more
            drawings.add(one.picture, _draw(one, categories, options.score_threshold))
    finally:
        drawings.close()
        rows.close()
        rich.print(f"{rows.count} detections in {count} images:", Text(str(place.folder), "bold"))


class Detection:
    """Batches of pictures through a detector; a picture that a transform or an exported file cannot take is a fault,
    and the rest goes on."""

    def __init__(self, stored: Stored, options: PredictOptions, faults: list[str]) -> None:
        node = stored.config["data"]["loader"]["val"] | {"batch_size": options.batch_size, "num_workers": 0}
        self._loader: Callable[..., Any] = build(node, key="data.loader.val")
        self._transforms = build_transforms(stored.config["transform"]["val"], "transform.val")
        self._detector = stored.augmented(options.tta)
        self._recogniser = stored.recogniser() if options.unknown else None
        self._precision: Precision = options.precision or stored.config["trainer"]["precision"]
        check_precision(self._precision, stored.device)
        self._stored, self._batch_size, self._faults = stored, options.batch_size, faults

    def of(self, source: Iterable[Picture]) -> Iterator[Found]:
        """What is found in the pictures of ``source``, of which no more than a batch is held."""
        pictures = iter(source)
        while batch := list(islice(pictures, self._batch_size)):
            yield from self._of_batch(batch)

    def _of_batch(self, pictures: Sequence[Picture]) -> Iterator[Found]:
        try:
            found = [one for group in self._apart(pictures) for one in self._detect(group)]
        except (ImageError, WrongSizeError) as error:
            if len(pictures) > 1:
                yield from chain.from_iterable(self._of_batch([picture]) for picture in pictures)
            else:
                self._faults.append(str(error))
            return
        yield from sorted(found, key=lambda one: one.picture.number)

    def _apart(self, pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
        """``pictures`` in batches: several where one would be mostly padding, as of a very wide and a very high one."""
        if len({picture.image.shape for picture in pictures}) == 1:
            return [pictures]
        dataset = InMemory(pictures, self._stored.checkpoint.categories)
        loader = self._loader(dataset=dataset, transforms=self._transforms)
        if not isinstance(loader, EvalLoader):  # one of the user's own, which pads as it likes
            return [pictures]
        return [[pictures[i] for i in group] for group in loader.apart()]

    def _detect(self, pictures: Sequence[Picture]) -> Iterator[Found]:
        by_number = {picture.number: picture for picture in pictures}
        dataset = InMemory(pictures, self._stored.checkpoint.categories)
        for batch in self._loader(dataset=dataset, transforms=self._transforms):
            batch = to_device(batch, self._stored.device, channels_last=False)
            with torch.no_grad(), autocast(self._stored.device, self._precision):
                detections = self._detector(batch.images)
            known = [(each.to("cpu"),) for each in detections]
            if self._recogniser is not None:
                known = self._recogniser(batch.images, detections)
            for (each, *of_cosines), meta in zip(known, batch.images.meta, strict=True):
                yield Found(by_number[meta.image_id], each, meta, *of_cosines)


def _draw(found: Found, categories: Categories, threshold: float) -> np.ndarray:
    assert found.meta.affine is not None
    names, mirror = categories.names, categories.mirror
    enough = found.detections.scores > threshold
    shown = found.detections.select(enough)
    shown = shown.undone(found.meta.affine, mirror)
    labels = shown.labels
    if found.unknown is not None:
        labels = torch.where(found.unknown[enough], len(names), labels)
    return draw_boxes(
        found.picture.image, shown.boxes.numpy(), labels.numpy(), [*names, UNKNOWN], shown.scores.numpy(),
        landmarks=None if shown.landmarks is None else shown.landmarks.numpy(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
