"""Planted errors: as many as promised, each of its kind; and precision by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import labels
from benchmarks.labels import MOVED_IOU, Planted, Ranked, compare, plant
from detkit.app.labels.found import Finding, LookedAt
from detkit.config import ConfigError
from detkit.evaluation.label_errors import Candidates, Kind, Suspicion
from detkit.evaluation.objectlab import objectlab
from detkit.structures import GroundTruth
from tests.data.builders import CATEGORIES, annotation, image


def content(num_images=50, num_boxes=8):
    images = [image(i) for i in range(num_images)]
    rng = np.random.default_rng(0)
    boxes = [
        annotation(100 * i + k, i, [*rng.uniform(0, 30, 2).tolist(), *rng.uniform(8, 18, 2).tolist()])
        for i in range(num_images)
        for k in range(num_boxes)
    ]
    crowd = annotation(9999, 0, [0, 0, 40, 40], iscrowd=1)
    return {"images": images, "annotations": [*boxes, crowd], "categories": CATEGORIES, "info": {"year": 1}}


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(np.add(a[:2], a[2:]), np.add(b[:2], b[2:]))
    shared = np.clip(high - low, 0, None).prod()
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_each_kind_is_planted_as_often_and_nothing_else_changes():
    before = content()
    text = json.dumps(before)
    after, planted = plant(before, 3)
    assert json.dumps(before) == text
    assert [planted.count(kind) for kind in labels.KINDS] == [20, 20, 20]
    assert {key: after[key] for key in ("images", "categories", "info")} == {
        key: before[key] for key in ("images", "categories", "info")
    }
    left = {a["id"]: a for a in after["annotations"]}
    for one in before["annotations"]:
        kind = planted.kinds.get(one["id"])
        if kind is Kind.MISSING:
            assert one["id"] not in left
            assert any(np.array_equal(box, one["bbox"]) for box in planted.dropped[one["image_id"]])
        elif kind is Kind.MISPLACED:
            assert MOVED_IOU[0] <= overlap(one["bbox"], left[one["id"]]["bbox"]) <= MOVED_IOU[1]
            x, y, w, h = left[one["id"]]["bbox"]
            assert min(x, y, 64 - x - w, 48 - y - h) >= -1e-9
        elif kind is Kind.WRONG_CLASS:
            assert left[one["id"]] == {**one, "category_id": 7}
        else:
            assert left[one["id"]] == one
    assert plant(before, 3)[0] == after
    assert plant(before, 4)[1].kinds != planted.kinds
    with pytest.raises(ConfigError, match="5% of its 8 training boxes is none"):
        plant(content(num_images=1), 0)


def test_of_one_class_the_other_kinds_are_planted_and_compared():
    after, planted = plant({**content(), "categories": CATEGORIES[1:]}, 3)
    assert [planted.count(kind) for kind in labels.KINDS] == [20, 20, 0]
    assert {a["category_id"] for a in after["annotations"]} == {CATEGORIES[1]["id"]}
    assert [row.kind for row in compare(planted, [looked_at()], 3)] == [Kind.MISSING, Kind.MISPLACED]


def test_what_is_not_planted_is_said(monkeypatch, capsys, tmp_path):
    planted = Planted({12: Kind.MISPLACED, 13: Kind.MISSING}, {1: [np.array([1.0, 60.0, 20.0, 20.0])]})
    report = SimpleNamespace(images=[looked_at()])
    monkeypatch.setattr(labels, "look_for_planted", lambda options: (planted, report))
    labels.main(["--checkpoint", "best.pt", "--folds", "2", "--samples", "3", "--output", str(tmp_path)])
    assert "\nwrong class: not planted, since the data have one class\n" in capsys.readouterr().out


def test_precision_of_the_first_with_images_that_come_more_often():
    ranked = Ranked(np.array([True, False, True, True]), np.array([0, 1, 1, 0]))
    weights = np.array([[1, 1], [2, 0], [0, 2], [3, 1]])
    assert ranked.precision(weights, 3).tolist() == [2 / 3, 1, 1 / 3, 1]
    assert ranked.precision(weights, 5).tolist() == [3 / 5, 4 / 5, 2 / 5, 4 / 5], "what is lacking is wrong"


def looked_at():
    """One image of three labels, the second swapped, the third moved, and one object dropped; detections know it."""
    truth = GroundTruth(
        1, "a.png", (100, 100), np.array([[0, 0, 20, 20], [40, 0, 20, 20], [46, 40, 20, 20.0]]), np.array([0, 1, 0]),
        np.full(3, 400.0), np.zeros(3, bool), np.array([10, 11, 12]),
    )  # fmt: skip
    boxes = np.array([[0, 0, 20, 20], [40, 0, 60, 20], [40, 40, 60, 60], [0, 60, 20, 80.0]])
    found = Candidates(boxes, np.array([0, 0, 0, 1]), np.array([0.99, 0.98, 0.97, 0.96]))
    suspicions = [
        Suspicion(Kind.MISSING, 0.9, None, 3, (0, 60, 20, 80), 1),
        Suspicion(Kind.WRONG_CLASS, 0.8, 1, 1, (40, 0, 60, 20), 0),
        Suspicion(Kind.MISPLACED, 0.3, 0, 0, (0, 0, 20, 20), 0),
        Suspicion(Kind.MISPLACED, 0.4, 2, 2, (40, 40, 60, 60), 0),
    ]
    findings = [Finding(truth, s, 1.0, None) for s in suspicions]
    corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
    scored = objectlab(corners, truth.labels, *found)
    return LookedAt(truth, findings, found, np.zeros(3, bool), scored)


def test_both_lists_are_held_against_what_was_planted():
    planted = Planted(
        {11: Kind.WRONG_CLASS, 12: Kind.MISPLACED, 13: Kind.MISSING}, {1: [np.array([1.0, 60.0, 20.0, 20.0])]}
    )
    rows = {row.kind: row for row in compare(planted, [looked_at()], 3)}
    assert [rows[kind].first for kind in labels.KINDS] == [1, 1, 1]
    assert [float(rows[kind].ours[0]) for kind in labels.KINDS] == [1, 1, 1]
    assert [float(rows[kind].baseline[0]) for kind in labels.KINDS] == [1, 0, 1], "the swapped one has no place either"
    assert labels.as_table(list(rows.values())).row_count == 3
