"""Suspicions about labels, on labels and detections made by hand; ObjectLab's scores by hand and by plain loops."""

import math

import numpy as np
import pytest

from detkit.evaluation.label_errors import Candidates, Kind, label_errors, rarities
from detkit.evaluation.objectlab import objectlab
from detkit.structures import GroundTruth

#: x y w h of four objects that lie apart.
PLACES = [[10, 10, 20, 20], [50, 10, 20, 20], [10, 50, 20, 20], [50, 50, 20, 20]]


def truth(boxes, labels, crowd=()):
    n = len(boxes)
    crowds = np.isin(np.arange(n), crowd)
    array = np.array(boxes, np.float64).reshape(n, 4)
    return GroundTruth(
        7, "a.png", (100, 100), array, np.array(labels, np.int64), array[:, 2:].prod(1), crowds, np.arange(n) + 100
    )


def detections(*rows):
    """Of (x, y, w, h, label, score)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
    return Candidates(boxes, table[:, 4].astype(np.int64), table[:, 5])


def found(labels, seen, candidates=None):
    return label_errors(labels, seen, [seen if candidates is None else candidates], 2).suspicions


def sure(suspicions, least=0.3):
    return [s for s in suspicions if s.certainty >= least]


def test_perfect_labels_give_nothing():
    seen = detections(*([*box, k % 2, 0.9] for k, box in enumerate(PLACES)))
    assert not sure(found(truth(PLACES, [0, 1, 0, 1]), seen), least=1e-9)
    assert not found(truth([], []), detections())


def test_each_kind_is_found_and_ranked_by_its_certainty():
    """Of six objects one is without a box, one's box is moved by half its side, one's class is wrong, one has two
    boxes, one is right, and one more box is of nothing."""
    six = [*PLACES, [80, 10, 16, 16], [80, 50, 16, 16]]
    labelled = [[60, 10, 20, 20], PLACES[2], PLACES[3], [51, 50, 20, 20], six[4], six[5]]
    seen = detections(
        (*PLACES[0], 0, 0.95), (*PLACES[1], 0, 0.9), (*PLACES[2], 1, 0.8), (*PLACES[3], 0, 0.7), (*six[4], 1, 0.6)
    )
    faint = detections(*([*box, k, 0.1] for box in PLACES for k in (0, 1)), (*six[5], 1, 0.2))
    everything = Candidates(*(np.concatenate(pair) for pair in zip(seen, faint, strict=True)))
    suspicions = found(truth(labelled, [0, 0, 0, 0, 1, 1]), seen, everything)
    missing, spurious, wrong, duplicate, misplaced, *right = suspicions
    assert (missing.kind, missing.index, missing.box, missing.label) == (Kind.MISSING, None, (10, 10, 30, 30), 0)
    assert missing.certainty == pytest.approx(1 - 0.05 * 0.9)
    assert (spurious.kind, spurious.index, spurious.box) == (Kind.SPURIOUS, 5, None)
    assert spurious.certainty == pytest.approx(1 - 0.2)
    assert (wrong.kind, wrong.index, wrong.label, wrong.box) == (Kind.WRONG_CLASS, 1, 1, (10, 50, 30, 70))
    assert wrong.certainty == pytest.approx(0.8 * (1 - 0.1))
    assert (duplicate.kind, duplicate.index, duplicate.other) == (Kind.DUPLICATE, 3, 2)
    assert duplicate.certainty == pytest.approx(0.7 * 19 / 21)
    assert (misplaced.kind, misplaced.index, misplaced.box) == (Kind.MISPLACED, 0, (50, 10, 70, 30))
    assert misplaced.certainty == pytest.approx(0.9 * (1 - 1 / 3))
    assert {(s.kind, s.index, s.certainty) for s in right} == {(Kind.MISPLACED, 2, 0), (Kind.MISPLACED, 4, 0)}


def test_a_box_is_in_one_finding_at_most():
    """A label of class 0 between a detection of class 1 and a better one of class 0, one of which has no partner."""
    seen = detections((10, 10, 20, 20, 1, 0.5), (12, 10, 20, 20, 0, 0.9))
    (only,) = found(truth(PLACES[:1], [0]), seen)
    assert (only.kind, only.index, only.certainty) == (Kind.MISPLACED, 0, 0)
    (moved,) = found(truth([[15, 10, 20, 20]], [1]), detections((10, 10, 20, 20, 0, 0.6), (10, 10, 20, 20, 1, 0.5)))
    assert moved.kind is Kind.WRONG_CLASS, "0.6 (1 - 0.5) is more than 0.5 (1 - 0.6)"
    assert moved.certainty == pytest.approx(0.3)
    (moved,) = found(truth([[17, 10, 20, 20]], [1]), detections((10, 10, 20, 20, 0, 0.6), (10, 10, 20, 20, 1, 0.5)))
    assert (moved.kind, moved.label) == (Kind.MISPLACED, 1), "the IoU is below a half: nothing is said of the class"


def test_of_two_detections_at_one_place_a_label_has_that_of_its_class():
    suspicions = found(truth(PLACES[:1], [1]), detections((*PLACES[0], 0, 0.6), (*PLACES[0], 1, 0.6)))
    assert [s.detection for s in suspicions if s.index == 0] == [1]


def test_one_object_of_several_detections_is_missing_once():
    """Detections of two classes at one place: together they are surer, and the better one gives box and class."""
    seen = detections((10, 10, 20, 20, 1, 0.5), (11, 10, 20, 20, 0, 0.6), (60, 60, 20, 20, 1, 0.7))
    first, second = found(truth([], []), seen)
    assert (first.box, first.label, first.certainty) == ((11, 10, 31, 30), 0, pytest.approx(1 - 0.5 * 0.4))
    assert (second.detection, second.certainty) == (2, pytest.approx(0.7))


def test_a_look_that_agrees_with_a_box_speaks_for_it():
    """Two looks have the object elsewhere and a third where the label is; what it has less sure of is not its word."""
    off, right = detections((16, 10, 20, 20, 0, 0.9)), detections((10, 10, 20, 20, 0, 0.6))
    doubtful = detections((16, 10, 20, 20, 0, 0.6), (10, 10, 20, 20, 0, 0.3), (10, 10, 20, 20, 1, 0.6))
    (moved,) = label_errors(truth(PLACES[:1], [0]), off, [off, doubtful], 2).suspicions
    assert (moved.kind, moved.certainty) == (Kind.MISPLACED, pytest.approx(0.75 * (1 - 14 / 26)))
    (kept,) = label_errors(truth(PLACES[:1], [0]), off, [off, off, right], 2).suspicions
    assert (kept.kind, kept.certainty) == (Kind.MISPLACED, 0)


def test_a_class_that_is_often_not_seen_says_little():
    """Of ten labels of class 0 four are not seen; of five of class 1 one, and of class 2 all three."""
    labels = np.array([0] * 10 + [1] * 5 + [2] * 3)
    is_unseen = np.array([1] * 4 + [0] * 6 + [1, 0, 0, 0, 0] + [1] * 3, bool)
    made = rarities(labels, is_unseen, 4)
    assert made[:4] == pytest.approx([0.02 / (3 / 10)] * 4), "of the others of class 0, 3 in 10; 1 in 50 is common"
    assert made[10] == 1, "no other label shares it"
    assert made[15:] == pytest.approx([0.02 / (2 / 3)] * 3)


def test_what_is_not_seen_is_told_for_each_label():
    judged = label_errors(
        truth([*PLACES[:3], [60, 60, 20, 20]], [0, 1, 0, 0]),
        detections((*PLACES[0], 1, 0.9), (*PLACES[1], 1, 0.8), (*PLACES[3], 0, 0.9)),
        [detections((*PLACES[0], 1, 0.9), (*PLACES[1], 1, 0.8), (*PLACES[3], 0, 0.9))],
        2,
    )
    assert judged.is_unseen.tolist() == [False, False, True, True], "the last overlaps by a seventh"


def test_two_objects_that_touch_keep_their_own_detections():
    """The nearest pair is not taken first where that leaves another without a partner."""
    labelled = truth([[10, 10, 20, 20], [18, 10, 20, 20]], [0, 0])
    suspicions = found(labelled, detections((14, 10, 20, 20, 0, 0.8), (20, 10, 20, 20, 0, 0.8)))
    assert [(s.kind, s.index) for s in sorted(suspicions, key=lambda s: s.index)] == [
        (Kind.MISPLACED, 0),
        (Kind.MISPLACED, 1),
    ]


def test_crowds_are_no_labels_and_hide_detections():
    labelled = truth([[0, 0, 60, 60], PLACES[3]], [0, 1], crowd=[0])
    assert not sure(found(labelled, detections((*PLACES[0], 0, 0.9), (*PLACES[3], 1, 0.9))))
    (outside,) = sure(found(labelled, detections((60, 0, 20, 20, 0, 0.9), (*PLACES[3], 1, 0.9))))
    assert outside.kind is Kind.MISSING


def alike(a, b):
    """The similarity of two boxes x1 y1 x2 y2, with the alpha and gamma of arXiv 2309.00832 and of cleanlab
    (internal/constants.py: ALPHA, EUC_FACTOR)."""
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    distance = math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2
    return 0.9 * w * h / union + 0.1 * math.exp(-0.1 * distance)


def by_loops(boxes, labels, seen, least=None):
    """ObjectLab's three scores from its definitions, one box after the other."""
    rows = list(zip(seen.boxes.tolist(), seen.labels.tolist(), seen.scores.tolist(), strict=True))
    if least is None:
        least = min((alike(d, b) for d, _, _ in rows for b in boxes), default=1.0)
    overlooked = []
    for d, k, p in rows:
        own = [alike(d, b) for b, label in zip(boxes, labels, strict=True) if label == k]
        overlooked.append(math.nan if p < 0.95 else max(own) if own else least * (1 - p))
    badly, swapped = [], []
    for b, label in zip(boxes, labels, strict=True):
        badly.append(max((alike(d, b) for d, k, p in rows if k == label and p >= 0.5), default=1.0))
        others = [alike(d, b) for d, k, p in rows if k != label and p >= 0.95]
        swapped.append(max(1 - max(others), least) if others else 1.0)
    return overlooked, badly, swapped


def pooled(scores):
    if not scores:
        return 1.0
    weights = [math.exp(-score / 0.1) for score in scores]
    return sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)


@pytest.mark.parametrize("seed", range(6))
def test_objectlab_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 60, (5, 2)), rng.uniform(10, 40, (5, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    labels = rng.integers(0, 2 + (seed == 5), 5)
    near = np.concatenate([boxes + rng.normal(0, 3, boxes.shape), boxes[:2] + 30])
    scores = np.array([0.99, 0.96, 0.6, 0.4, 0.97, 0.98, 0.2])
    seen = Candidates(near, rng.integers(0, 3, 7), scores)
    least = 1e-4 if seed == 4 else None  # that of another image
    made = objectlab(boxes, labels, *seen, least)
    expected = by_loops(boxes.tolist(), labels.tolist(), seen, least)
    assert made.least == pytest.approx(min(alike(d, b) for d in near.tolist() for b in boxes.tolist()))
    for mine, theirs in zip((made.overlooked, made.badly_located, made.swapped), expected, strict=True):
        assert mine == pytest.approx(np.array(theirs), nan_ok=True)
    kinds = ([x for x in expected[0] if not math.isnan(x)], expected[1], expected[2])
    assert made.image == pytest.approx(math.prod(map(pooled, kinds)) ** (1 / 3))


def test_objectlab_by_hand():
    """A of class 0 and B of class 1 lie 100 px apart (centre to centre). Detections, in turn: 10 px off A, of its
    class; on B, of class 0; of class 2, 50 px from A; 4 px off B, of its class; on B, of its class, but unsure.

    With IoUs of 200 / 600 and 320 / 480, s is 0.9 / 3 + 0.1 exp(-1) = 0.33678794 and 0.9 * 2 / 3 + 0.1 exp(-0.4) =
    0.66703200 for the two that are off; on B 1; across, 0.1 exp(-10) = 4.5399930e-6, which is s_min; and
    0.1 exp(-5) = 6.7379470e-4 between A and what is of class 2.
    """
    a, b = [0, 0, 20, 20], [100, 0, 120, 20]
    seen = detections(
        (10, 0, 20, 20, 0, 0.99), (100, 0, 20, 20, 0, 0.96), (40, 30, 20, 20, 2, 0.97), (96, 0, 20, 20, 1, 0.5),
        (100, 0, 20, 20, 1, 0.49),
    )  # fmt: skip
    made = objectlab(np.array([a, b], np.float64), np.array([0, 1]), *seen)
    s_min = 4.5399930e-6
    assert made.least == pytest.approx(s_min)
    overlooked = [0.33678794, s_min, s_min * (1 - 0.97), math.nan, math.nan]
    assert made.overlooked == pytest.approx(np.array(overlooked), nan_ok=True), "from 0.95 on"
    assert made.badly_located == pytest.approx(np.array([0.33678794, 0.66703200])), "from 0.5 on"
    assert made.swapped == pytest.approx(np.array([1 - 6.7379470e-4, s_min])), "1 - 1 is raised to s_min"
    assert made.image == pytest.approx((0.00570742579 * 0.348507499 * 5.02158393e-05) ** (1 / 3)), "softmins at 0.1"


def test_objectlab_of_nothing():
    none = objectlab(np.zeros((0, 4)), np.zeros(0, np.int64), *detections())
    assert (none.image, none.least) == (1, 1)
    assert [len(part) for part in none[:3]] == [0, 0, 0]


def test_a_label_beside_the_object_of_another_is_spurious():
    """IoU 0.6 with the label that has the detection: below that of a duplicate."""
    labelled = truth([PLACES[0], [15, 10, 20, 20]], [0, 0])
    (only,) = sure(found(labelled, detections((*PLACES[0], 0, 0.9))), least=0.05)
    assert (only.kind, only.index, only.certainty) == (Kind.SPURIOUS, 1, pytest.approx(0.1))
