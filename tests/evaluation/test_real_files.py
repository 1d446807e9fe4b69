"""Real annotation files, against pycocotools reading the same file itself: set DETKIT_DATA to the data folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import CocoEvaluator, write_results
from detkit.structures import Affine, Categories, Detections, GroundTruth, ImageMeta
from tests.evaluation.cases import read_truths

SETS = ["coco_mini/val.json", "bccd/val.json"]


def load(name: str) -> tuple[Path, Categories, list[GroundTruth]]:
    folder = os.environ.get("DETKIT_DATA")
    if not folder:
        pytest.skip("DETKIT_DATA is not set")
    path = Path(folder) / name
    file = json.loads(path.read_text())
    categories = Categories(tuple(c["name"] for c in file["categories"]), tuple(c["id"] for c in file["categories"]))
    return path, categories, read_truths(file)


def pycocotools_reads(truth_file: Path, results_file: Path) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        evaluation = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


def meta_of(truth: GroundTruth) -> ImageMeta:
    """The image resized so that its longer side is 320 px."""
    h, w = truth.size
    scale = 320 / max(h, w)
    return ImageMeta(truth.image_id, truth.file, (round(h * scale), round(w * scale)), truth.size, Affine(scale, scale))


def as_detections(truth: GroundTruth, boxes: np.ndarray, scores: np.ndarray, meta: ImageMeta) -> Detections:
    """``boxes`` x y w h px of the original image, as a detector that looks at the resized one gives them."""
    assert meta.affine is not None
    corners = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    return Detections(
        meta.affine.apply(corners).float(), torch.from_numpy(scores).float(), torch.from_numpy(truth.labels)
    )


@pytest.mark.parametrize("name", SETS)
def test_the_annotations_as_detections_are_perfect(name: str, tmp_path: Path) -> None:
    path, categories, truths = load(name)
    scorer = CocoEvaluator(categories=categories, truths=truths, max_detections=(1, 10, 100))
    for truth in truths:
        meta = meta_of(truth)
        keep = np.flatnonzero(~truth.crowd)
        found = as_detections(truth, truth.boxes, np.ones(len(truth)), meta).select(torch.from_numpy(keep))
        scorer.update([found], [meta])
    write_results(tmp_path / "results.json", scorer.results())
    stats = pycocotools_reads(path, tmp_path / "results.json")
    metrics = scorer.compute().metrics
    assert np.array_equal(np.array(list(metrics.values())), stats)
    assert metrics["AP50"] == pytest.approx(1, abs=1e-12)  # a class with one object alone: 1 - 2**-52
    assert metrics["AP"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("backend", ["auto", "pycocotools"])
def test_disturbed_annotations_score_as_pycocotools_scores_the_files(name: str, backend: str, tmp_path: Path) -> None:
    path, categories, truths = load(name)
    rng = np.random.default_rng(0)
    scorer = CocoEvaluator(categories=categories, truths=truths, backend=backend)  # type: ignore[arg-type]
    for truth in truths:
        boxes = truth.boxes + 0.1 * np.tile(truth.boxes[:, 2:], 2) * rng.standard_normal(truth.boxes.shape)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 0)
        meta = meta_of(truth)
        scorer.update([as_detections(truth, boxes, np.round(rng.random(len(truth)), 1), meta)], [meta])
    write_results(tmp_path / "results.json", scorer.results())
    metrics = scorer.compute().metrics
    assert 0.1 < metrics["AP"] < 0.9
    assert np.array_equal(np.array(list(metrics.values())), pycocotools_reads(path, tmp_path / "results.json"))
