"""Weighted accumulation: pycocotools' numbers for weights of one, and of repeated images for whole numbers."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from detkit.evaluation import ScoredSet
from detkit.evaluation.columns import detection_columns, truth_columns
from detkit.evaluation.matches import accumulate, match
from detkit.evaluation.summary import coco_metrics, summarize
from tests.evaluation.cases import Case, pycocotools_says, random_case, result_rows


def scored_set(case: Case) -> ScoredSet:
    truth = truth_columns(case.truths, case.categories)
    names = dict(zip(case.categories.ids, case.categories.names, strict=True))
    ordered = tuple(names[i] for i in truth.category_ids.tolist())
    return ScoredSet(truth, detection_columns(case.results.sort(), truth), ordered, case.max_detections)


def numbers(case: Case, weights: np.ndarray) -> dict[str, np.ndarray]:
    matches = match(scored_set(case))
    return {metric.name: accumulate(matches, metric, weights) for metric in coco_metrics(case.max_detections)}


@pytest.mark.parametrize("seed", range(60))
def test_weights_of_one_give_pycocotools_last_bit(seed: int) -> None:
    case = random_case(seed)
    curves, _ = pycocotools_says(case.file, result_rows(case.results), case.max_detections)
    wanted = summarize(curves, coco_metrics(case.max_detections))
    found = numbers(case, np.ones((2, len(case.file["images"]))))
    assert {name: value.tolist() for name, value in found.items()} == {k: [v, v] for k, v in wanted.items()}


@pytest.mark.parametrize("seed", range(200, 230))
def test_whole_weights_repeat_images(seed: int) -> None:
    """pycocotools on a data set in which image i stands w[i] times, with copies of its objects and detections."""
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    case.results.scores[:] = rng.random(len(case.results))  # the order of equal scores would depend on the copies
    images = sorted(image["id"] for image in case.file["images"])
    weights = rng.integers(0, 4, len(images))
    weights[rng.integers(len(images))] = 2
    new_id = iter(range(1, 10**6))
    file = {"images": [], "annotations": [], "categories": case.file["categories"]}
    rows = []
    for image_id, times in zip(images, weights.tolist(), strict=True):
        for _ in range(times):
            copy_id = next(new_id)
            file["images"].append({"id": copy_id, "width": 400, "height": 300, "file_name": "x"})
            for a in case.file["annotations"]:
                if a["image_id"] == image_id:
                    number = 0 if a["id"] == 0 else next(new_id)
                    file["annotations"].append({**a, "id": number, "image_id": copy_id})
            rows += [{**r, "image_id": copy_id} for r in result_rows(case.results) if r["image_id"] == image_id]
    curves, _ = pycocotools_says(file, rows, case.max_detections)
    wanted = summarize(curves, coco_metrics(case.max_detections))
    found = numbers(case, weights[None])
    assert {k: v.item() for k, v in found.items()} == pytest.approx(wanted, abs=1e-12)


def test_a_sample_does_not_depend_on_the_others() -> None:
    case = random_case(7)
    weights = np.random.default_rng(0).integers(0, 3, (5, len(case.file["images"])))
    together = numbers(case, weights)
    for b in range(5):
        alone = numbers(case, weights[b : b + 1])
        assert {k: v[b] for k, v in together.items()} == {k: v[0] for k, v in alone.items()}


def test_weights_of_another_data_set_are_refused() -> None:
    case = random_case(7)
    matches = match(scored_set(case))
    with pytest.raises(ValueError, match=r"weights must be \(B, \d\), not \(1, 99\)"):
        accumulate(matches, matches.metric("AP"), np.ones((1, 99)))
    with pytest.raises(ValueError, match="no metric 'AP60'; there are AP, AP50, AP75"):
        matches.metric("AP60")


def test_the_file_keeps_every_bit(tmp_path: Path) -> None:
    scored = scored_set(random_case(11))
    scored.save(tmp_path / "detections.npz")
    back = ScoredSet.load(tmp_path / "detections.npz")
    for ours, theirs in zip((*scored.truth, *scored.found), (*back.truth, *back.found), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert (back.names, back.max_detections) == (scored.names, scored.max_detections)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "detections.npz"
    scored_set(random_case(11)).save(path)
    whole = path.read_bytes()
    with io.BytesIO() as array, io.BytesIO() as archive:
        np.save(array, np.arange(3))
        np.savez(archive, format=1, max_detections=[1, 10])
        others = array.getvalue(), archive.getvalue()
    for content in (b"", b"none", whole[:200], whole[:-1], *others):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"detections.npz: damaged, or not the detections of an evaluation: \S"):
            ScoredSet.load(path)
    for i in range(0, len(whole), len(whole) // 200):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        with contextlib.suppress(ValueError):  # a date, say, may be another
            ScoredSet.load(path)
    with io.BytesIO() as archive:
        np.savez(archive, format=2)
        path.write_bytes(archive.getvalue())
    with pytest.raises(ValueError, match=r"detections.npz: format 2; this detkit reads format 1"):
        ScoredSet.load(path)
    with pytest.raises(ValueError, match="there is no such file"):
        ScoredSet.load(tmp_path / "nothing.npz")
