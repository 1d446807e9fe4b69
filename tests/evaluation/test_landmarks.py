"""Scores of landmarks: errors by hand, and pycocotools' own keypoint protocol on the files that it would be given."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import CocoEvaluator
from detkit.evaluation.landmarks import at_average_place, landmark_rule, normalised_errors
from detkit.evaluation.results import Results, read_results, restore, write_results
from detkit.structures import Affine, Categories, Detections, GroundTruth, ImageMeta, Landmarks

NAMES = ("left_eye", "right_eye", "nose")
FACES = Categories(("face", "mask"), (3, 7), NAMES)


def truth(image_id, boxes, points, labels=None, crowd=None):
    boxes, n = np.array(boxes, np.float64).reshape(-1, 4), len(boxes)
    landmarks = Landmarks(np.array(points, np.float64).reshape(-1, 3, 3), FACES.mirror)
    labels = np.zeros(n, np.int64) if labels is None else np.array(labels)
    crowd = np.zeros(n, bool) if crowd is None else np.array(crowd)
    ids = np.arange(100 * image_id + 1, 100 * image_id + 1 + n)
    return GroundTruth(
        image_id, f"{image_id}.jpg", (200, 200), boxes, labels, boxes[:, 2] * boxes[:, 3], crowd, ids, landmarks
    )


def detections(boxes, points, scores, labels=None):
    boxes = torch.tensor(boxes).reshape(-1, 4).float()
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Detections(boxes, torch.tensor(scores), labels, torch.tensor(points).reshape(-1, 3, 2).float())


FACE = [[40, 50, 2], [60, 50, 2], [50, 65, 1]]
FACE_AT = [[40, 50], [60, 50], [50, 65]]
HALF = [[40, 50, 2], [0, 0, 0], [50, 65, 2]]


def meta(image_id, affine=None):
    return ImageMeta(image_id, f"{image_id}.jpg", (200, 200), (200, 200), affine or Affine())


def results_of(found, image_id=1):
    return {image_id: restore(found, meta(image_id), FACES)}


def test_errors_by_hand():
    """Box 36 x 49: the root of its area is 42; the eyes are 20 px apart."""
    truths = [truth(1, [[30, 40, 36, 49], [130, 40, 36, 49], [30, 140, 36, 49]], [FACE, HALF, FACE])]
    off = [[43, 54], [60, 50], [50, 71]]  # 5, 0 and 6 px away
    found = detections([[30, 40, 66, 89], [130, 40, 166, 89]], [off, off], [0.9, 0.8])
    found.landmarks[1] = torch.tensor([[40.0, 53], [0, 90], [50, 64]])  # 3 px, any, 1 px
    by_box = normalised_errors(truths, results_of(found), FACES, landmark_rule(NAMES, None, None))
    np.testing.assert_allclose(by_box, [11 / 3 / 42, 2 / 42, np.nan])
    rule = landmark_rule(NAMES, ("left_eye", "right_eye"), None)
    by_eyes = normalised_errors(truths, results_of(found), FACES, rule)
    np.testing.assert_allclose(by_eyes, [11 / 3 / 20, np.nan])  # of the second face one eye is not labelled


def test_the_best_detection_of_the_class_finds_an_object():
    truths = [truth(1, [[30, 40, 36, 49]], [FACE])]
    right = [[40, 50], [60, 50], [50, 65]]
    wrong = [[0, 0], [0, 0], [0, 0]]
    box, beside = [30, 40, 66, 89], [60, 40, 96, 89]
    # in the order of a detector that does not sort
    found = detections([box, box, beside, box], [wrong, right, wrong, wrong], [0.5, 0.9, 0.99, 0.95], [0, 0, 0, 1])
    errors = normalised_errors(truths, results_of(found), FACES, landmark_rule(NAMES, None, None))
    assert errors.tolist() == [0.0]


def test_crowds_and_objects_without_a_point_are_not_asked_for():
    truths = [truth(1, [[30, 40, 36, 49]] * 3, [FACE, [[0, 0, 0]] * 3, FACE], crowd=[True, False, False])]
    errors = normalised_errors(truths, {}, FACES, landmark_rule(NAMES, None, None))
    np.testing.assert_array_equal(errors, [np.nan])


def test_the_average_place_of_each_point_by_hand():
    """The first point lies at 0.25 and 0.75 of the width, the second is labelled once, the third never; no crowds."""
    one, other = [[15, 30, 2], [14, 38, 1], [0, 0, 0]], [[130, 120, 2], [0, 0, 0], [0, 0, 0]]
    boxes = [[10, 20, 20, 20], [100, 100, 40, 40], [0, 0, 99, 99]]
    truths = [truth(1, boxes, [one, other, FACE], crowd=[False, False, True])]
    found = detections([[10, 20, 30, 40], [50, 60, 90, 100]], [FACE_AT, FACE_AT], [0.9, 0.8])
    placed = at_average_place(truths, results_of(found))
    expected = [[[20, 30], [14, 38]], [[70, 80], [58, 96]]]  # 0.5, 0.5 and 0.2, 0.9 of the box that was found
    np.testing.assert_allclose(placed[1].landmarks[:, :2], expected)
    evaluator = CocoEvaluator(categories=FACES, truths=truths)
    evaluator.update([found], [meta(1)])
    scores = evaluator.compute().metrics
    assert scores["NME_average_place"] == pytest.approx((5 + 0) / 2 / 20), "the second object is not found"
    assert scores["NME"] != scores["NME_average_place"]


def test_detections_of_a_mirror_image_are_named_as_in_the_image():
    found = detections([[134, 40, 170, 89]], [[[140, 50], [160, 50], [150, 65]]], [0.9])
    back = restore(found, meta(1, Affine(scale_x=-1.0, shift_x=200.0)), FACES)
    assert back.boxes.tolist() == [[30, 40, 36, 49]]
    assert back.landmarks.tolist() == [[[40, 50], [60, 50], [50, 65]]]
    scaled = restore(found, meta(1, Affine(2.0, 0.5)), FACES)
    assert scaled.landmarks[0, 2].tolist() == [75, 130]
    found.landmarks[0, 1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"1\.jpg.*a landmark that is not finite"):
        restore(found, meta(1), FACES)


def random_case(seed):
    """Truths of 12 images with crowds and points that nobody labelled, and detections near them and anywhere."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for i in range(1, 13):
        n = int(rng.integers(0, 4))
        boxes = np.concatenate([rng.uniform(0, 100, (n, 2)), rng.uniform(20, 90, (n, 2))], axis=1).round(1)
        points = boxes[:, None, :2] + rng.uniform(0, 1, (n, 3, 2)) * boxes[:, None, 2:]
        marks = rng.integers(0, 3, (n, 3, 1)).astype(float)
        marked = np.concatenate([points, marks], axis=2) * (marks > 0)
        truths.append(truth(i, boxes, marked, rng.integers(0, 2, n), rng.random(n) < 0.15))
        near = np.repeat(np.arange(n), 2)
        corners = np.concatenate([boxes[near, :2], boxes[near, :2] + boxes[near, 2:]], axis=1)
        corners += rng.normal(0, 3, corners.shape)
        placed = points[near] + rng.normal(0, 3, (len(near), 3, 2))
        scores = rng.random(len(near)).astype(np.float32)
        found.append(detections(corners, placed, scores, rng.integers(0, 2, len(near))))
    return truths, found


@pytest.mark.parametrize("seed", range(3))
def test_similarity_is_pycocotools_own(tmp_path, seed):
    truths, found = random_case(seed)
    evaluator = CocoEvaluator(categories=FACES, truths=truths, landmark_sigmas=(0.03, 0.04, 0.1))
    evaluator.update(found, [meta(t.image_id) for t in truths])
    ours = evaluator.compute()
    write_results(tmp_path / "found.json", evaluator.results())
    annotations = [
        {
            "id": int(t.annotation_ids[k]), "image_id": t.image_id, "category_id": FACES.ids[t.labels[k]],
            "bbox": t.boxes[k].tolist(), "area": float(t.area[k]), "iscrowd": int(t.crowd[k]),
            "keypoints": t.landmarks.points[k].flatten().tolist(),
            "num_keypoints": int((t.landmarks.points[k, :, 2] > 0).sum()),
        }
        for t in truths for k in range(len(t))
    ]  # fmt: skip
    images = [{"id": t.image_id, "width": 200, "height": 200} for t in truths]
    categories = [{"id": i, "name": n} for i, n in zip(FACES.ids, FACES.names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        theirs = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "keypoints")
        theirs.params.kpt_oks_sigmas = np.array([0.03, 0.04, 0.1])
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    names = ("OKS_AP", "OKS_AP50", "OKS_AP75")
    assert [ours.metrics[n] for n in names] == theirs.stats[:3].tolist()
    assert ours.metrics["OKS_AR"] == theirs.stats[5]
    assert 0.1 < ours.metrics["OKS_AP"] < 0.9
    assert ours.metrics["NME"] > 0


def test_numbers_of_boxes_do_not_change_and_others_have_none_of_landmarks():
    truths, found = random_case(0)
    metas = [meta(t.image_id) for t in truths]
    bare = [Detections(f.boxes, f.scores, f.labels) for f in found]
    plain = Categories(FACES.names, FACES.ids)
    scores = []
    for categories, given in ((FACES, found), (FACES, bare), (plain, found)):
        evaluator = CocoEvaluator(categories=categories, truths=truths)
        evaluator.update(given, metas)
        scores.append(evaluator.compute().metrics)
    assert scores[1] == scores[2]
    assert scores[1].items() <= scores[0].items()
    assert set(scores[0]) - set(scores[1]) == set(CocoEvaluator(categories=FACES, truths=truths).metric_names[12:])
    assert "NME" in scores[0]
    evaluator = CocoEvaluator(categories=FACES, truths=truths)
    evaluator.update([f.select(f.scores > 2) for f in found], metas)
    nothing = evaluator.compute()
    assert (nothing.metrics["NME"], nothing.metrics["landmarks_found"]) == (-1, 0)
    assert np.isnan(nothing.value("NME"))


def test_processes_gather_landmarks():
    truths, found = random_case(1)
    whole, one, other = (CocoEvaluator(categories=FACES, truths=truths) for _ in range(3))
    metas = [meta(t.image_id) for t in truths]
    whole.update(found, metas)
    one.update(found[::2], metas[::2])
    other.update(found[1::2], metas[1::2])
    states = [one.state(), other.state()]
    one.merge(states)
    assert one.compute().metrics == whole.compute().metrics


def test_results_files_have_keypoints(tmp_path):
    found = detections([[30, 40, 66, 89]], [[[40, 50], [60.5, 50], [50, 65]]], [0.5])
    write_results(tmp_path / "a.json", restore(found, meta(1), FACES))
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert row["keypoints"] == [40, 50, 1, 60.5, 50, 1, 50, 65, 1]
    assert len(read_results(tmp_path / "a.json")) == 1
    joined = Results.join([restore(found, meta(1), FACES), Results.empty()])
    assert joined.landmarks.shape == (1, 3, 2)
    with pytest.raises(ValueError, match=r"1 boxes but landmarks are \(2, 3, 2\), not \(1, L, 2\)"):
        Results(np.ones(1), np.ones(1), np.ones((1, 4)), np.ones(1), np.ones((2, 3, 2)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"landmark_distance": ("left_eye", "ear")},
            r"landmark_distance must be two of left_eye, right_eye, nose, not",
        ),
        ({"landmark_distance": ("nose", "nose")}, "landmark_distance must be two of"),
        ({"landmark_sigmas": (0.1, 0.1)}, r"landmark_sigmas must be 3 positive numbers, not \[0.1, 0.1\]"),
        ({"landmark_sigmas": (0.1, 0.1, 0.0)}, "landmark_sigmas must be 3 positive numbers"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        CocoEvaluator(categories=FACES, truths=[truth(1, [[30, 40, 36, 49]], [FACE])], **options)


def test_options_of_landmarks_want_data_with_landmarks():
    with pytest.raises(ValueError, match="score landmarks, and the data set has none"):
        CocoEvaluator(
            categories=Categories(("face",), (3,)),
            truths=[truth(1, [[30, 40, 36, 49]], [FACE])],
            landmark_sigmas=(0.1, 0.1, 0.1),
        )


def test_another_number_of_landmarks_is_refused():
    evaluator = CocoEvaluator(categories=FACES, truths=[truth(1, [[30, 40, 36, 49]], [FACE])])
    found = Detections(torch.tensor([[30.0, 40, 66, 89]]), torch.ones(1), torch.zeros(1).long(), torch.zeros(1, 5, 2))
    evaluator.update([found], [meta(1)])
    with pytest.raises(ValueError, match="the detector finds 5 landmarks, and the objects have 3"):
        evaluator.compute()
