"""TIDE's error types and their cost: by hand, against tidecv's numbers, and against COCO's AP50."""

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, EvaluatorState, Results, errors
from detkit.evaluation.breakdown import by_class, by_size, confusion_matrix, false_alarms, found
from detkit.evaluation.errors import (
    ErrorKind,
    average_precision,
    best_threshold,
    error_costs,
    image_errors,
)
from detkit.evaluation.synthetic import synthetic_set
from detkit.structures import Categories, GroundTruth

CATEGORIES = Categories(("cat", "dog"), (3, 8))


def truth_of(*objects, image_id=1):
    """``objects``: x, y, w, h, label, and whether it is a crowd."""
    rows = np.array([o[:4] for o in objects], np.float64).reshape(-1, 4)
    return GroundTruth(
        image_id=image_id,
        file=f"{image_id}.png",
        size=(100, 200),
        boxes=rows,
        labels=np.array([o[4] for o in objects], np.int64),
        area=rows[:, 2] * rows[:, 3],
        crowd=np.array([len(o) > 5 and o[5] for o in objects], bool),
        annotation_ids=np.arange(10, 10 + len(objects)),
    )


def results_of(*found, image_id=1):
    """``found``: x, y, w, h, label, score."""
    return Results(
        np.full(len(found), image_id),
        np.array([CATEGORIES.ids[f[4]] for f in found], np.int64),
        np.array([f[:4] for f in found], np.float64).reshape(-1, 4),
        np.array([f[5] for f in found], np.float64),
    )


#: A cat at the left, a dog beside it, a crowd of cats at the right, and one mistake of each kind.
TRUTH = truth_of((0, 0, 20, 20, 0), (40, 0, 20, 20, 1), (100, 0, 100, 100, 0, True), (0, 60, 20, 20, 0))
FOUND = results_of(
    (0, 0, 20, 18, 0, 0.9),  # right
    (0, 0, 20, 20, 0, 0.8),  # duplicate of it
    (40, 0, 20, 20, 0, 0.7),  # the dog, called a cat
    (50, 0, 20, 20, 1, 0.6),  # the dog, IoU 1/3
    (12, 0, 20, 20, 1, 0.55),  # a dog over 1/4 of the cat, and 1/4 px of nothing else
    (70, 70, 20, 20, 1, 0.5),  # nothing there
    (150, 50, 20, 20, 0, 0.4),  # in the crowd
)


def test_each_kind_by_hand():
    image = image_errors(TRUTH, FOUND, CATEGORIES)
    assert image.kinds.tolist() == [
        None, ErrorKind.DUPLICATE, ErrorKind.CLASS, ErrorKind.LOCATION, ErrorKind.BOTH, ErrorKind.BACKGROUND, None
    ]  # fmt: skip
    assert image.objects.tolist() == [0, 0, 1, 1, 0, -1, -1]
    assert image.right.tolist() == [True] + [False] * 6
    assert image.inside_crowd.tolist() == [False] * 6 + [True]
    assert image.found_by.tolist() == [0, -1, -1, -1]
    assert image.missed.tolist() == [False, False, False, True], "errors speak of the dog; the crowd is not to be found"


def test_an_overlap_of_exactly_a_tenth_is_a_place_and_not_more():
    """10 x 1 of 10 x 10 px: in [t_b, t_f] for its own class, and not above t_b for another."""
    found = results_of((0, 0, 10, 1, 0, 0.9), (0, 0, 10, 1, 1, 0.8))
    image = image_errors(truth_of((0, 0, 10, 10, 0)), found, CATEGORIES)
    assert image.kinds.tolist() == [ErrorKind.LOCATION, ErrorKind.BACKGROUND]


def test_detections_come_best_first_whatever_their_order():
    image = image_errors(TRUTH, FOUND, CATEGORIES)
    shuffled = image_errors(TRUTH, FOUND.select(np.array([4, 1, 6, 0, 5, 3, 2])), CATEGORIES)
    assert shuffled.kinds.tolist() == image.kinds.tolist()
    assert np.array_equal(shuffled.boxes, image.boxes)


def test_costs_by_hand():
    """Cat: 2 objects, hits at 1 of 1, then errors: AP 51/101 (recall 0.5 is reached). Dog: 1 object, none found: 0."""
    ap, costs = error_costs([image_errors(TRUTH, FOUND, CATEGORIES)], 2)
    half = 51 / 101
    assert ap == pytest.approx(half / 2)
    assert costs[ErrorKind.DUPLICATE] == 0  # comes after the only hit
    # The best error about the dog is the Cls one (0.7 against 0.6). Corrected it is the dog class's best detection.
    assert costs[ErrorKind.CLASS] == pytest.approx(0.5)
    assert costs[ErrorKind.LOCATION] == 0  # only vanishes: another error about the same object scores more
    assert costs[ErrorKind.MISSED] == pytest.approx((1 - half) / 2)  # the cat at the bottom is taken off
    loose = image_errors(TRUTH, FOUND.select(np.array([0, 1, 3, 4, 5, 6])), CATEGORIES)
    assert error_costs([loose], 2)[1][ErrorKind.LOCATION] == pytest.approx(0.5)


def test_nothing_found_and_nothing_to_find():
    empty, nothing = truth_of(image_id=2), results_of(image_id=2)
    images = [
        image_errors(TRUTH, results_of(), CATEGORIES),
        image_errors(empty, nothing, CATEGORIES),
        image_errors(empty, results_of((0, 0, 9, 9, 1, 0.3), image_id=2), CATEGORIES),
    ]
    assert images[0].missed.tolist() == [True, True, False, True]
    assert images[2].kinds.tolist() == [ErrorKind.BACKGROUND]
    ap, costs = error_costs(images, 2)
    assert ap == 0
    assert costs[ErrorKind.MISSED] == 0, "nothing is left to be found: no AP"
    assert best_threshold(images) == 0


def synthetic(seed, crowd_share=0.0):
    made = synthetic_set(
        num_images=12, num_categories=3, detections_per_image=20, objects_per_image=6, crowd_share=crowd_share,
        size=200, seed=seed,
    )  # fmt: skip
    shift = np.random.default_rng(seed).permutation(len(made.results)) * 1e-7  # libraries differ in equal scores
    r = made.results
    return made, Results(r.image_ids, r.category_ids, r.boxes, r.scores + shift)


def judged(made, results):
    return [image_errors(t, results.select(results.image_ids == t.image_id), made.categories) for t in made.truths]


#: What tidecv 1.0.1 says of ``synthetic(seed)``: AP50, the costs, and the counts, in the order of ErrorKind.
TIDECV = {
    1: (
        0.334123298548574,
        [0.00038682310668363584, 0.046491702513750115, 0.07407580248476776, 0.030210112408503135, 0.11759932550900146,
         0.07663142830889186],
        [2, 26, 33, 51, 78, 13],
    ),
    22: (
        0.28473648093536286,
        [0.010523792465326807, 0.06078989819701821, 0.04060818330745729, 0.020134688686728738, 0.12026242348859942,
         0.07041260152535532],
        [3, 22, 33, 48, 87, 14],
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", TIDECV)
def test_equal_to_tidecv(seed, monkeypatch):
    # tidecv divides to get its recalls, COCO multiplies: ten of the 101 differ in the last bit
    monkeypatch.setattr(errors, "RECALL_THRESHOLDS", np.arange(101) / 100)
    images = judged(*synthetic(seed))
    ap, costs = error_costs(images, 3)
    expected_ap, expected_costs, expected_counts = TIDECV[seed]
    assert ap == pytest.approx(expected_ap, abs=1e-12)
    assert [costs[kind] for kind in ErrorKind] == pytest.approx(expected_costs, abs=1e-12)
    counts = [sum(int((i.kinds == kind).sum()) for i in images) for kind in ErrorKind]
    counts[-1] = sum(int(i.missed.sum()) for i in images)
    assert counts == expected_counts


@pytest.mark.parametrize("seed", range(6))
def test_ap50_is_the_evaluators(seed):
    made, results = synthetic(seed, crowd_share=0.1)
    evaluator = CocoEvaluator(categories=made.categories, truths=made.truths)
    evaluator.merge([EvaluatorState(np.array([t.image_id for t in made.truths]), results)])
    scored = evaluator.compute()
    images = judged(made, results)
    assert error_costs(images, 3)[0] == pytest.approx(scored.metrics["AP50"], abs=1e-9)
    rows = by_class(images, made.categories.names, 0.5)
    assert [r["AP50"] for r in rows] == pytest.approx([c.AP50 for c in scored.per_class], abs=1e-9)
    assert [r["objects"] for r in rows] == [c.num_gt for c in scored.per_class]


@pytest.mark.parametrize("own", [0, 4])
def test_of_equally_near_objects_a_detection_takes_the_one_that_the_evaluator_gives_it(own):
    """A box around two objects of one size, and a box on one of them: only if the first takes the other, are both right."""
    truth = truth_of((0, 0, 10, 10, 0), (0, 4, 10, 10, 0))
    found = results_of((0, 0, 10, 14, 0, 0.9), (0, own, 10, 10, 0, 0.8))
    image = image_errors(truth, found, CATEGORIES)
    evaluator = CocoEvaluator(categories=CATEGORIES, truths=[truth])
    evaluator.merge([EvaluatorState(np.array([1]), found)])
    assert image.right.tolist() == [True, own == 0]
    assert error_costs([image], 2)[0] == pytest.approx(evaluator.compute().metrics["AP50"])


def test_average_precision_by_hand():
    """Hits at ranks 1 and 3 of 2 objects: precision 1 up to recall 0.5 (51 points), then 2/3 (50 points)."""
    ap = average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
    assert ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_best_threshold_is_the_best_by_trial():
    images = judged(*synthetic(4, crowd_share=0.1))
    num_objects = sum(int((~i.truth.crowd).sum()) for i in images)

    def f1(threshold):
        right = sum(int((i.right & (i.scores >= threshold)).sum()) for i in images)
        wrong = sum(int(false_alarms(i, threshold).sum()) for i in images)
        return 2 * right / (right + wrong + num_objects)

    scores = np.concatenate([i.scores for i in images])
    assert f1(best_threshold(images)) == pytest.approx(max(map(f1, scores)))


def test_best_threshold_counts_what_is_not_found():
    """Two of ten objects are found, with three wrong ones between: F1 is 2 / 11 at 0.9, and 4 / 15 at 0.5."""
    ten = truth_of(*((20 * i, 0, 10, 10, 0) for i in range(10)))
    wrong = [(20 * i, 50, 10, 10, 0, 0.7) for i in range(3)]
    seen = results_of((0, 0, 10, 10, 0, 0.9), *wrong, (20, 0, 10, 10, 0, 0.5))
    assert best_threshold([image_errors(ten, seen, CATEGORIES)]) == 0.5


def test_best_threshold_shows_all_of_equal_scores():
    """Of two objects, F1 is 2 / 3 at 0.9 and 4 / 8 at 0.5, where four wrong ones come with the second right one."""
    two = truth_of((0, 0, 10, 10, 0), (50, 0, 10, 10, 0))
    wrong = [(100 + 20 * i, 50, 10, 10, 0, 0.5) for i in range(4)]
    seen = results_of((0, 0, 10, 10, 0, 0.9), (50, 0, 10, 10, 0, 0.5), *wrong)
    assert best_threshold([image_errors(two, seen, CATEGORIES)]) == 0.9


def test_small_and_medium_are_below_their_bounds():
    """32 x 32 px are not small, and 96 x 96 px not medium."""
    seen = results_of((150, 0, 32, 32, 1, 0.9))
    rows = by_size([image_errors(truth_of((0, 0, 32, 32, 0), (0, 0, 96, 96, 0)), seen, CATEGORIES)], 0.5)
    assert [(r["name"], r["objects"], r["false_alarms"]) for r in rows] == [
        ("small", 0, 0), ("medium", 1, 1), ("large", 1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
def test_breakdowns_agree_with_each_other(threshold):
    images = judged(*synthetic(7, crowd_share=0.1))
    matrix = confusion_matrix(images, 3, threshold)
    num_objects = sum(int((~i.truth.crowd).sum()) for i in images)
    num_found = sum(int(found(i, threshold).sum()) for i in images)
    num_wrong = sum(int(false_alarms(i, threshold).sum()) for i in images)
    assert matrix[:3].sum() == num_objects, "every object stands in its row once"
    assert np.trace(matrix) == num_found, "the diagonal is what was found"
    assert matrix[:, :3].sum() == num_found + num_wrong, "every detection stands in its column once"
    assert matrix[3, 3] == 0
    for rows in (by_class(images, ("a", "b", "c"), threshold), by_size(images, threshold)):
        assert sum(r["objects"] for r in rows) == num_objects
        assert sum(r["found"] for r in rows) == num_found
        assert sum(r["false_alarms"] for r in rows) == num_wrong


def test_confusion_by_hand():
    matrix = confusion_matrix([image_errors(TRUTH, FOUND, CATEGORIES)], 2, 0.0)
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [1, 3, 0]]  # the dog stands as a cat; a cat is missed


def test_curve_of_a_class():
    row = by_class([image_errors(TRUTH, FOUND, CATEGORIES)], CATEGORIES.names, 0.5)[0]
    assert row["curve"]["recall"] == [0.5, 0.5, 0.5]
    assert row["curve"]["precision"] == pytest.approx([1, 0.5, 0.3333])
    assert row["curve"]["score"] == [0.9, 0.8, 0.7]
    assert (row["found"], row["false_alarms"]) == (1, 2)
