"""Evaluation and training by one process and by several: ``python -m tests.engine.sharded FOLDER`` prints the results,
and ``... FOLDER MODEL MODEL`` those of training other models.

A fresh process with one thread, because forking one that has run OpenMP threads may hang.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from detkit.data import EvalLoader
from detkit.data.datasets.base import DataReport, DetectionDataset
from detkit.engine import evaluate
from detkit.engine.update import Updater
from detkit.evaluation import CocoEvaluator
from detkit.models import MTCNN, Detector
from detkit.structures import Categories, GroundTruth
from detkit.utils import dist
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

#: What learns the same from a batch and from two halves of it, with overrides; and what takes longer, for the slow
#: tests. No loss reads the last stage of the one whose neck takes an earlier map.
MODELS = [
    *("faster_rcnn_fpn", "retinanet", "centernet", "yolov1 model.neck.stride=16", "mtcnn", "tridentnet"),
    "diffusiondet",
]
SLOW_MODELS = ["rfcn", "faster_rcnn_snip", "flow"]


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
    """What process ``rank`` of ``world`` gets to know, and how often it has computed the scores itself."""
    loader = EvalLoader(
        dataset=dataset, transforms=[], batch_size=batch_size, num_workers=0, rank=rank, world_size=world
    )
    evaluator = CocoEvaluator(categories=CATEGORIES, truths=dataset.truths, backend="pycocotools")
    with mock.patch.object(CocoEvaluator, "compute", autospec=True, side_effect=CocoEvaluator.compute) as compute:
        result = evaluate(detector, loader, evaluator, device="cpu", val_loss=True)
    found = evaluator.results()
    return {
        "computed": compute.call_count,
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


def learning(model: str) -> Detector:
    """A detector that can learn the same from a batch and from its halves."""
    name, *overrides = model.split()
    detector = build_awake(name, CATEGORIES, overrides).train()
    if isinstance(detector, MTCNN):  # all samples, for the hardest of a batch are not those of its halves
        detector.training_settings = dataclasses.replace(detector.training_settings, hard_share=1.0)
    else:  # in float32 the order of sums alone sets the weights of a deep network apart
        detector = detector.double()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # its statistics would be those of a share
    return detector


def train(detector: Detector, folder: Path, rank: int = 0, world: int = 1) -> list[dict[str, float]]:
    """Losses of two steps on four images, of which the last two, one process's share, have no boxes.

    The weights before and afterwards go into ``folder``.
    """
    folder.mkdir(exist_ok=True)
    torch.save(detector.state_dict(), folder / f"before{rank}.pt")
    dataset = Pictures(4)
    for i in range(2):
        h, w = dataset.truths[i].size
        boxes = np.array([[4.0, 4, w / 2, h / 2], [w / 3, h / 3, w / 2, h / 2]])[: 1 + i]
        dataset.truths[i] = _truth(i, (h, w), boxes, np.arange(1 + i))
    loader = EvalLoader(
        dataset=dataset, transforms=[], batch_size=4 // world, num_workers=0, rank=rank, world_size=world
    )
    updater = Updater(
        detector=detector, optimizer=torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9),
        device=torch.device("cpu"), precision="fp32", accumulate=1, clip_norm=1.0, ema_decay=None,
    )  # fmt: skip
    losses = []
    for _ in range(2):
        (batch,) = loader
        found = updater.backward(batch, is_last=True)
        losses.append(dist.mean_of_numbers({name: term.item() for name, term in found.terms.items()}))
        updater.finish(updater.gradient_norm(), apply=True)
    torch.save(detector.state_dict(), folder / f"after{rank}.pt")
    return losses


def compare_training(folder: Path, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What one process with four images and two with two each have learnt, of each model."""
    detectors = {model: learning(model) for model in models}

    def learnt(world: int, rank: int) -> dict[str, list[dict[str, float]]]:
        return {m: train(d, folder / f"{world}" / m, rank, world) for m, d in detectors.items()}

    alone, shared = folder / "1", folder / "2"
    (losses,) = together(alone, 1, functools.partial(learnt, 1))  # a child too: after a backward none may fork
    losses_together, _ = together(shared, 2, functools.partial(learnt, 2))
    return {
        model: {
            "losses": [losses[model], losses_together[model]],
            "moved": _apart(alone / model / "after0.pt", alone / model / "before0.pt"),
            "apart": [_apart(alone / model / "after0.pt", shared / model / f"after{rank}.pt") for rank in range(2)],
        }
        for model in models
    }


def _apart(one: Path, other: Path) -> float:
    """The largest difference between two states."""
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    return max(float((first[name] - value).abs().max()) for name, value in second.items())


def evaluations(folder: Path, cases: Sequence[tuple[str, int, int, int]]) -> list[list[dict[str, Any]]]:
    found = []
    detectors = {model: build_awake(model, CATEGORIES) for model in dict.fromkeys(case[0] for case in cases)}
    for i, (model, num_images, batch_size, world) in enumerate(cases):
        detector = detectors[model]
        dataset = made_for(detector, num_images)
        task = functools.partial(score, detector, dataset, batch_size, world=world)
        found.append([task(0)] if world == 1 else together(folder / str(i), world, task))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, *only = Path(sys.argv[1]), *sys.argv[2:]
    training = compare_training(path / "training", only or MODELS)
    print(json.dumps({"evaluations": [] if only else evaluations(path, CASES), "training": training}))
