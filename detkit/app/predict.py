"""``tools/predict.py``: boxes on pictures, and a results file in COCO's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import rich
import torch
from omegaconf import DictConfig

from detkit.app.entry import run_tool
from detkit.app.schema import PredictOptions
from detkit.app.setup import build_transforms
from detkit.app.stored import Stored, load_stored
from detkit.config import ConfigError, build
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.unlabelled import VIDEO_SUFFIXES, ImageFiles, VideoFrames
from detkit.engine.evaluation import autocast, check_precision, to_device
from detkit.evaluation.results import restore
from detkit.structures import Categories, Detections, ImageMeta
from detkit.structures.draw import draw_boxes
from detkit.utils.files import atomic_write
from detkit.utils.log import set_up_logging
from detkit.utils.progress import track


def main() -> None:
    """The command line."""
    run_tool(run, "predict")


def run(cfg: DictConfig, folder: Path) -> None:
    """Predict on ``cfg.input``; pictures (or a video) and ``detections.json`` go to ``cfg.output`` or a new folder."""
    set_up_logging()
    options, stored = load_stored(cfg, PredictOptions)
    if not 0 <= options.score_threshold <= 1:
        raise ConfigError(f"score_threshold: must lie in [0, 1], not {options.score_threshold}")
    dataset = _open(options.input, stored.checkpoint.categories)
    output = Path(options.output) if options.output else folder
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    # Read anew for drawing: frame by frame in order, while the loader is some frames ahead.
    pictures = Pictures(output, _open(options.input, stored.checkpoint.categories), options.score_threshold)
    with closing(pictures):
        found = _detect(stored, dataset, options)
        for index, (detections, meta) in enumerate(track(found, len(dataset), "predicting")):
            rows += _rows(detections, meta, stored)
            pictures.draw(index, detections, meta)
    atomic_write(output / "detections.json", json.dumps(rows))
    rich.print(f"{len(rows)} detections in {len(dataset)} images: [bold]{output}[/bold]")


def _open(path: str, categories: Categories) -> ImageFiles | VideoFrames:
    is_video = Path(path).suffix.lower() in VIDEO_SUFFIXES
    return VideoFrames(path, categories) if is_video else ImageFiles(path, categories)


def _detect(
    stored: Stored, dataset: DetectionDataset, options: PredictOptions
) -> Iterator[tuple[Detections, ImageMeta]]:
    """Detections of each image, in px of the network input, with what leads back to the file."""
    node = stored.config["data"]["loader"]["val"] | {"batch_size": options.batch_size, "num_workers": 0}
    transforms = build_transforms(stored.config["transform"]["val"], "transform.val")
    loader = build(node, key="data.loader.val")(dataset=dataset, transforms=transforms)
    detector = stored.augmented(options.tta)
    precision = options.precision or stored.config["trainer"]["precision"]
    check_precision(precision, stored.device)
    for batch in loader:
        batch = to_device(batch, stored.device, channels_last=False)
        with torch.no_grad(), autocast(stored.device, precision):
            found = detector(batch.images)
        for detections, meta in zip(found, batch.images.meta, strict=True):
            yield detections.to("cpu"), meta


def _rows(found: Detections, meta: ImageMeta, stored: Stored) -> list[dict]:
    """COCO's results rows (original px and category ids), with the file beside the id."""
    results = restore(found, meta, stored.checkpoint.categories)
    return [
        {"image_id": meta.image_id, "file_name": meta.file, "category_id": int(c), "bbox": box, "score": float(s)}
        for c, box, s in zip(results.category_ids, results.boxes.tolist(), results.scores, strict=True)
    ]


class Pictures:
    """Draws detections: a PNG for each image, named after it, or one video for all frames."""

    def __init__(self, output: Path, dataset: DetectionDataset, score_threshold: float) -> None:
        self.output, self.dataset, self.score_threshold = output, dataset, score_threshold
        self._writer: cv2.VideoWriter | None = None

    def draw(self, index: int, found: Detections, meta: ImageMeta) -> None:
        """Draw what was ``found`` (px of the network input) on image ``index``."""
        assert meta.affine is not None
        shown = found.select(found.scores > self.score_threshold)
        boxes, names = meta.affine.undo(shown.boxes).numpy(), self.dataset.categories.names
        picture = draw_boxes(self.dataset.read(index), boxes, shown.labels.numpy(), names, shown.scores.numpy())
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if isinstance(self.dataset, VideoFrames):
            self._append(picture, self.dataset.fps)
        else:
            cv2.imwrite(str(self.output / f"{index + 1:06d}_{Path(meta.file).stem}.png"), picture)

    def close(self) -> None:
        """Finish the video."""
        if self._writer is not None:
            self._writer.release()

    def _append(self, picture: np.ndarray, fps: float) -> None:
        if self._writer is None:
            size = (picture.shape[1], picture.shape[0])
            path = self.output / "detections.mp4"
            self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        self._writer.write(picture)


if __name__ == "__main__":
    main()
