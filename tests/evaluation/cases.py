"""Small random data sets that try everything a scoring library could trip over, and pycocotools' own word on them."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import EvaluatorState, Results
from detkit.evaluation.summary import Curves
from detkit.structures import Categories, GroundTruth

LIMITS = [(1, 10, 100), (1, 10, 300), (1, 2, 3), (5, 50, 100), (100, 200, 300), (1, 2, 100)]


class Case(NamedTuple):
    """``file``: the annotation file as a dict, in its own numbering and in no order; ``results``: the detections."""

    file: dict[str, Any]
    results: Results
    max_detections: tuple[int, int, int]

    @property
    def categories(self) -> Categories:
        found = self.file["categories"]
        return Categories(tuple(c["name"] for c in found), tuple(c["id"] for c in found))

    @property
    def truths(self) -> list[GroundTruth]:
        return read_truths(self.file)

    @property
    def state(self) -> EvaluatorState:
        return EvaluatorState(np.array([i["id"] for i in self.file["images"]]), self.results)


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    num_images, num_categories = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    image_ids = rng.choice(rng.choice([8, 10**12]), num_images, replace=False)  # 0 and gaps; larger than int32
    category_ids = rng.choice(12, num_categories, replace=False)
    num_objects, num_detections = int(rng.choice([0, 1, 5, 30])), int(rng.choice([0, 1, 10, 60, 400]))
    on_grid = rng.random() < 0.5
    boxes = _boxes(rng, num_objects, on_grid)
    if rng.random() < 0.1:  # files with boxes turned inside out exist
        boxes[:, 2:] *= rng.choice([-1, 1], (num_objects, 2))
    area = boxes[:, 2] * boxes[:, 3] * (rng.choice([0.5, 1, 3], num_objects) if rng.random() < 0.5 else 1)
    crowd = rng.random(num_objects) < rng.choice([0, 0.2, 1])
    images, labels = rng.integers(0, num_images, num_objects), rng.integers(0, num_categories, num_objects)
    first_id = 0 if rng.random() < 0.2 else 1
    ids = np.sort(rng.choice(3 * num_objects, num_objects, replace=False)) + first_id
    if num_objects and first_id == 0:
        ids[rng.integers(num_objects)] = 0
        ids = np.where(np.arange(num_objects) == np.flatnonzero(ids == 0)[-1], 0, ids + 1)
    file = {
        "images": [{"id": int(i), "width": 400, "height": 300, "file_name": f"{i}.png"} for i in image_ids],
        "categories": [{"id": int(c), "name": f"class {c}"} for c in category_ids],
        "annotations": [
            {
                "id": int(ids[n]),
                "image_id": int(image_ids[images[n]]),
                "category_id": int(category_ids[labels[n]]),
                "bbox": boxes[n].tolist(),
                "area": float(area[n]),
                "iscrowd": int(crowd[n]),
            }
            for n in range(num_objects)
        ],
    }
    where, what, found = _detect(rng, num_detections, on_grid, boxes, images, labels, num_images, num_categories)
    results = Results(image_ids[where], category_ids[what], found, _scores(rng, num_detections))
    return Case(file, results, LIMITS[rng.integers(len(LIMITS))])


def _boxes(rng: np.random.Generator, count: int, on_grid: bool) -> np.ndarray:
    """On a grid of 16 px many IoUs are equal, many boxes have no area, and some lie on the border of an area range."""
    if on_grid:
        return rng.integers(0, 8, (count, 4)) * 16.0
    return np.concatenate([rng.random((count, 2)) * 150, rng.random((count, 2)) * rng.choice([10, 40, 150])], axis=1)


def _detect(rng, count, on_grid, boxes, images, labels, num_images, num_categories):
    found = _boxes(rng, count, on_grid)
    where, what = rng.integers(0, num_images, count), rng.integers(0, num_categories, count)
    if len(boxes):
        near, which = rng.random(count) < 0.6, rng.integers(0, len(boxes), count)
        moved = boxes[which] + (rng.normal(0, 3, (count, 4)) if rng.random() < 0.7 else 0)
        moved[:, 2:] = np.maximum(moved[:, 2:], 0)
        found = np.where(near[:, None], moved, found)
        where, what = np.where(near, images[which], where), np.where(near, labels[which], what)
    return where, what, found


def _scores(rng: np.random.Generator, count: int) -> np.ndarray:
    digits = rng.choice([0, 1, 7])  # with 0 and 1 nearly all scores are equal to others
    return np.round(rng.random(count), digits).astype(np.float32).astype(np.float64)


def read_truths(file: dict[str, Any]) -> list[GroundTruth]:
    """The records of an annotation file, by ascending image id."""
    label = {c["id"]: k for k, c in enumerate(file["categories"])}
    truths = []
    for image in sorted(file["images"], key=lambda i: i["id"]):
        own = [a for a in file["annotations"] if a["image_id"] == image["id"]]
        truths.append(
            GroundTruth(
                image_id=image["id"],
                file=image["file_name"],
                size=(image["height"], image["width"]),
                boxes=np.array([a["bbox"] for a in own], np.float64).reshape(-1, 4),
                labels=np.array([label[a["category_id"]] for a in own], np.int64),
                area=np.array([a["area"] for a in own], np.float64),
                crowd=np.array([a["iscrowd"] for a in own], bool),
                annotation_ids=np.array([a["id"] for a in own], np.int64),
            )
        )
    return truths


def result_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of a COCO results file."""
    return [
        {"image_id": int(i), "category_id": int(c), "bbox": b.tolist(), "score": float(s)}
        for i, c, b, s in zip(results.image_ids, results.category_ids, results.boxes, results.scores, strict=True)
    ]


def pycocotools_says(
    file: dict[str, Any], rows: list[dict[str, Any]], max_detections: tuple[int, int, int]
) -> tuple[Curves, np.ndarray]:
    """The arrays and the twelve numbers, by pycocotools' own way in, with the original ids and nothing of detkit."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(file)
        truth.createIndex()
        if rows:
            found = truth.loadRes(copy.deepcopy(rows))
        else:  # loadRes fails on an empty list
            found = COCO()
            found.dataset = {**file, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    arrays = evaluation.eval
    return Curves(arrays["precision"], arrays["recall"], arrays["scores"]), np.asarray(evaluation.stats)
