"""Numbers beside COCO's twelve: own thresholds and areas, all classes as one, and by how frequent a class is."""

import io
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from detkit.evaluation import CocoEvaluator, ScoredSet
from detkit.evaluation.coco import frequencies
from detkit.evaluation.evaluator import MOST_ROWS
from detkit.evaluation.matches import accumulate, match
from detkit.evaluation.summary import mean
from detkit.structures import Affine, Categories, Detections, ImageMeta
from tests.evaluation.cases import random_case
from tests.evaluation.test_coco import truth


def scored(case, **options):
    evaluator = CocoEvaluator(categories=case.categories, truths=case.truths, **options)
    evaluator.merge([case.state])
    return evaluator, evaluator.compute()


@pytest.fixture(scope="module")
def case():
    """Several categories, with objects and detections of each."""
    cases = (random_case(seed) for seed in range(200))
    return next(c for c in cases if len(c.categories) == 4 and len(c.file["annotations"]) == 30 and len(c.results) > 50)


def test_own_thresholds_are_a_choice_among_cocos(case):
    _, whole = scored(case, backend="pycocotools")
    evaluator, own = scored(case, iou_thresholds=(0.5, 0.6, 0.75))
    assert list(own.metrics)[:3] == ["AP", "AP50", "AP75"]
    chosen = whole.curves.precision[[0, 2, 5]]
    np.testing.assert_array_equal(own.curves.precision, chosen)
    assert own.metrics["AP"] == mean(chosen[..., 0, -1])
    assert (own.metrics["AP50"], own.metrics["AP75"]) == (whole.metrics["AP50"], whole.metrics["AP75"])
    _, coarse = scored(case, iou_thresholds=(0.3, 0.6))
    assert "AP50" not in coarse.metrics
    assert coarse.metrics["AP"] >= own.metrics["AP"]
    assert coarse.per_class[0].AP50 == -1
    assert evaluator.backend == "pycocotools"
    assert "0.50:0.75" in shown(own.table())


def test_own_recalls_are_those_points_of_the_curve(case):
    _, whole = scored(case, backend="pycocotools")
    eleven = tuple(i / 10 for i in range(11))
    _, own = scored(case, recall_thresholds=eleven)
    np.testing.assert_array_equal(own.curves.precision, whole.curves.precision[:, ::10])


def test_own_areas_have_numbers_of_their_own(case):
    _, whole = scored(case, backend="pycocotools")
    areas = {"tiny": (0.0, 1024.0), "rest": (1024.0, None)}
    evaluator, own = scored(case, areas=areas)
    assert own.metrics["AP_tiny"] == whole.metrics["APs"]
    assert own.metrics["AR_tiny"] == whole.metrics["ARs"]
    assert own.metrics["AP"] == whole.metrics["AP"]
    assert {"AP_rest", "AR_rest"} < own.metrics.keys()
    assert "APs" not in own.metrics
    assert evaluator.metric_names == tuple(own.metrics)


def test_all_classes_as_one_score_where_not_what():
    """Two objects, found where they are and called each other's name."""
    categories = Categories(("cat", "dog"), (7, 3))
    record = truth(4, [[10, 10, 60, 60], [100, 90, 80, 70]], [0, 1])
    boxes = torch.tensor([[10.0, 10, 70, 70], [100, 90, 180, 160]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))
    meta = ImageMeta(4, record.file, (200, 300), (200, 300), Affine())
    values = {}
    for agnostic in (False, True):
        evaluator = CocoEvaluator(categories=categories, truths=[record], class_agnostic=agnostic)
        evaluator.update([found], [meta])
        values[agnostic] = evaluator.compute()
    assert values[False].metrics["AP"] == 0
    assert values[True].metrics["AP"] == 1
    (row,) = values[True].per_class
    assert (row.name, row.num_gt, row.num_det) == ("any class", 2, 2)
    assert evaluator.results().category_ids.tolist() == [3, 7], "the file of results still has the classes"


def test_a_crowd_is_one_among_all_classes_too():
    categories = Categories(("cat", "dog"), (7, 3))
    record = truth(4, [[10, 10, 60, 60], [100, 90, 80, 70]], [0, 1], crowd=(1,))
    evaluator = CocoEvaluator(categories=categories, truths=[record], class_agnostic=True)
    found = Detections(torch.tensor([[10.0, 10, 70, 70]]), torch.tensor([0.9]), torch.tensor([0]))
    evaluator.update([found], [ImageMeta(4, record.file, (200, 300), (200, 300), Affine())])
    evaluation = evaluator.compute()
    assert (evaluation.metrics["AR100"], evaluation.per_class[0].num_gt) == (1, 1), "the dogs are not to be found"


def test_all_classes_as_one_equal_pycocotools_without_categories(case):
    from detkit.evaluation.backends import pycocotools_evaluation
    from detkit.evaluation.columns import detection_columns, truth_columns

    columns = truth_columns(case.truths, case.categories)
    evaluation = pycocotools_evaluation(columns, detection_columns(case.results, columns), (1, 10, 100))
    evaluation.params.useCats = 0
    evaluation.evaluate()
    evaluation.accumulate()
    _, own = scored(case, class_agnostic=True, backend="pycocotools")
    np.testing.assert_allclose(own.curves.precision, evaluation.eval["precision"], atol=1e-12)
    np.testing.assert_allclose(own.curves.recall, evaluation.eval["recall"], atol=1e-12)


def frequency_case(case):
    return [3 + 20 * k for k in range(len(case.categories))]


def test_ap_by_frequency_is_the_mean_over_those_classes(case):
    counts = frequency_case(case)
    evaluator, own = scored(case, frequency_bounds=(10, 50), class_images=counts)
    groups = {
        "APr": [k for k, n in enumerate(counts) if n <= 10],
        "APc": [k for k, n in enumerate(counts) if 10 < n <= 50],
    }
    groups["APf"] = [k for k, n in enumerate(counts) if n > 50]
    for name, labels in groups.items():
        by_class = [own.per_class[k].AP for k in labels if own.per_class[k].AP > -1]
        expected = np.mean(by_class) if by_class else -1
        assert own.metrics[name] == pytest.approx(expected), name
    assert list(own.metrics)[-3:] == ["APr", "APc", "APf"]
    assert own.frequency[0] == "rare"
    assert own.to_dict()["frequency"] == list(own.frequency)
    assert re.search(r"APr .*rare, 1 classes", shown(own.table()))
    plain = scored(case)[1]
    assert list(own.metrics)[:12] == list(plain.metrics)
    assert "frequency" not in plain.to_dict()
    assert evaluator.metric_names == tuple(own.metrics)


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_bounds": (10, 50)},
        {"iou_thresholds": (0.4, 0.5), "areas": {"tiny": (0.0, 900.0)}},
        {"class_agnostic": True},
        {},
    ],
)
def test_a_stored_set_scores_the_same_again(case, options, tmp_path):
    if "frequency_bounds" in options:
        options = options | {"class_images": frequency_case(case)}
    evaluator, own = scored(case, **options)
    evaluator.scored_set().save(tmp_path / "set.npz")
    matches = match(ScoredSet.load(tmp_path / "set.npz"))
    ones = np.ones((1, matches.num_images))
    for name, value in own.metrics.items():
        assert accumulate(matches, matches.metric(name), ones)[0] == pytest.approx(value, abs=1e-12), name


def test_a_table_of_many_classes_has_the_best_and_the_worst():
    names = tuple(f"class {k:03d}" for k in range(300))
    records = [truth(k, [[10, 10, 60, 60]], [k]) for k in range(300)]
    evaluator = CocoEvaluator(categories=Categories(names, tuple(range(1, 301))), truths=records)
    for k, record in enumerate(records):
        shift = k / 10
        found = Detections(torch.tensor([[10 + shift, 10, 70 + shift, 70]]), torch.tensor([0.9]), torch.tensor([k]))
        evaluator.update([found], [ImageMeta(k, record.file, (200, 300), (200, 300), Affine())])
    evaluation = evaluator.compute()
    text = shown(evaluation.per_class_table())
    assert len(re.findall(r"class \d", text)) == MOST_ROWS
    assert "class 000" in text
    assert "class 299" in text
    assert "class 100" not in text
    assert "the best and worst of 300 classes; evaluation.json has all" in text
    assert len(evaluation.to_dict()["per_class"]) == 300


def shown(table):
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_classes_are_rare_and_common_up_to_the_bounds():
    categories = Categories(tuple("abcd"), (1, 2, 3, 4))
    found = frequencies((10, 100), [10, 100, 11, 101], categories)
    assert found == ("rare", "common", "common", "frequent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_thresholds": (0.75, 0.5)}, r"iou_thresholds must be numbers in \[0, 1\], ascending, not \[0.75, 0.5\]"),
        ({"recall_thresholds": (0.5, 1.5)}, "recall_thresholds must be numbers"),
        (
            {"areas": {"tiny": (9.0, 4.0)}},
            r"areas.tiny must have bounds in px\^2, the lower one first, not \[9.0, 4.0\]",
        ),
        ({"frequency_bounds": (10, 100)}, "frequency_bounds count training images, and there is no training data here"),
        ({"frequency_bounds": (10, 5), "class_images": [1]}, "must be two ascending numbers of images"),
        (
            {"frequency_bounds": (1, 5), "class_images": [1], "class_agnostic": True},
            "frequency_bounds tell classes apart, which class_agnostic does not",
        ),
        ({"iou_thresholds": (0.5,), "backend": "hotcoco"}, "backend 'hotcoco' scores with COCO's own thresholds"),
    ],
)
def test_settings_that_mean_nothing_are_refused(case, options, message):
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(categories=case.categories, truths=case.truths, **options)


def test_an_area_without_an_upper_bound_has_none():
    """Objects of 120,000 px, above the 10^5 px that COCO's own largest area ends at."""
    record = truth(1, [[0, 0, 400, 300], [500, 0, 400, 300]], [0, 0])
    boxes = torch.tensor([[0.0, 0, 400, 300], [500, 0, 900, 300]])
    areas = {"tiny": (0.0, 1024.0), "rest": (1024.0, None)}
    evaluator = CocoEvaluator(categories=Categories(("cat",), (7,)), truths=[record], areas=areas)
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
    evaluator.update([found], [ImageMeta(1, record.file, (1000, 1000), (1000, 1000), Affine())])
    metrics = evaluator.compute().metrics
    assert (metrics["AP_rest"], metrics["AP_tiny"]) == (pytest.approx(1), -1)
