"""Evaluations by one process and by several: ``python -m tests.engine.sharded FOLDER`` prints what each has found.

A fresh process with one thread, because forking one that has run OpenMP threads may hang.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkit.data import EvalLoader
from detkit.data.datasets.base import DataReport, DetectionDataset
from detkit.engine import evaluate
from detkit.evaluation import CocoEvaluator
from detkit.models import Detector
from detkit.structures import Categories, GroundTruth
from tests.data.builders import picture
from tests.engine.stubs import digest
from tests.models.builders import build_awake

CATEGORIES = Categories(("circle", "square", "star"), (3, 7, 12))

#: Model, images, images in a batch, processes: shares are uneven, and in the last row one process has nothing to do.
CASES = [
    ("faster_rcnn_fpn", 9, 2, 1),
    ("faster_rcnn_fpn", 9, 2, 2),
    ("faster_rcnn_fpn", 9, 2, 3),
    ("retinanet", 7, 3, 1),
    ("retinanet", 7, 3, 2),
    ("centernet", 5, 4, 1),
    ("centernet", 5, 4, 3),
]


class Pictures(DetectionDataset):
    """Pictures of changing sizes in memory; a third of them, the first too, have no boxes."""

    def __init__(self, num_images: int) -> None:
        self.categories = CATEGORIES
        self.truths = [_truth(i, (64, 96) if i % 3 else (96, 64)) for i in range(num_images)]
        self.report = DataReport("pictures", num_images, 0, 0, len(CATEGORIES), ())

    def read(self, index: int) -> np.ndarray:
        return picture(*self.truths[index].size, seed=index)

    def take(self, detections: np.ndarray, image_ids: np.ndarray, labels: np.ndarray) -> None:
        """Make objects of what a detector has found, xywh px, moved a little: it then finds some of them."""
        rng = np.random.default_rng(0)
        for i, truth in enumerate(self.truths):
            found = np.flatnonzero(image_ids == truth.image_id)[:: 1 + i % 2][: 4 if i % 3 else 0]
            size = np.tile(detections[found, 2:], 2)
            boxes = detections[found] + rng.uniform(-0.15, 0.15, size.shape) * size
            self.truths[i] = _truth(i, truth.size, boxes, labels[found])


def _truth(
    i: int, size: tuple[int, int], boxes: np.ndarray | None = None, labels: np.ndarray | None = None
) -> GroundTruth:
    boxes = np.zeros((0, 4)) if boxes is None else boxes
    labels = np.zeros(0, np.int64) if labels is None else labels
    ids = 100 * i + 1 + np.arange(len(boxes))
    return GroundTruth(1000 - i, f"{i}.png", size, boxes, labels, boxes[:, 2:].prod(axis=1), ids % 100 == 4, ids)


def score(detector: Detector, dataset: Pictures, batch_size: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """What process ``rank`` of ``world`` gets to know."""
    loader = EvalLoader(
        dataset=dataset, transforms=[], batch_size=batch_size, num_workers=0, rank=rank, world_size=world
    )
    evaluator = CocoEvaluator(categories=CATEGORIES, truths=dataset.truths, backend="pycocotools")
    result = evaluate(detector, loader, evaluator, device="cpu", val_loss=True)
    found = evaluator.results()
    return {
        "metrics": result.metrics,
        "num_images": result.num_images,
        "detections": digest([found.image_ids.tolist(), found.boxes.tolist(), found.scores.tolist()]),
    }


def made_for(detector: Detector, num_images: int) -> Pictures:
    """A data set in which ``detector`` finds something."""
    dataset = Pictures(num_images)
    evaluator = CocoEvaluator(categories=CATEGORIES, truths=dataset.truths, backend="pycocotools")
    evaluate(detector, EvalLoader(dataset=dataset, transforms=[], num_workers=0), evaluator, device="cpu")
    found = evaluator.results().sort()
    labels = np.searchsorted(CATEGORIES.ids, found.category_ids)
    dataset.take(found.boxes, found.image_ids, labels)
    return dataset


def together(folder: Path, world: int, task: Any) -> list[Any]:
    """What ``task(rank)`` returns in each of ``world`` processes."""

    def work(rank: int) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world,
            timeout=datetime.timedelta(seconds=60),
        )  # fmt: skip
        (folder / f"{rank}.json").write_text(json.dumps(task(rank)))
        torch.distributed.destroy_process_group()

    folder.mkdir(parents=True)
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            try:
                work(rank)
                os._exit(0)
            except BaseException as error:
                print(f"process {rank} of {world}: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * world, codes
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def main(folder: Path, cases: Sequence[tuple[str, int, int, int]]) -> list[list[dict[str, Any]]]:
    found = []
    for i, (model, num_images, batch_size, world) in enumerate(cases):
        detector = build_awake(model, CATEGORIES)
        dataset = made_for(detector, num_images)
        if world == 1:
            found.append([score(detector, dataset, batch_size)])
        else:

            def task(
                rank: int, detector: Detector = detector, dataset: Pictures = dataset, size: int = batch_size,
                world: int = world,
            ) -> Any:  # fmt: skip
                return score(detector, dataset, size, rank, world)

            found.append(together(folder / str(i), world, task))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]), CASES)))
