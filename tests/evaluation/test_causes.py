"""Each cause of a missed object, planted by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from detkit.app.explain.found import cause_of
from detkit.evaluation.causes import Cause, describe, explain_missed, find_trails, stages_of
from detkit.evaluation.errors import image_errors
from detkit.matching import Fate, Selection, SoftSelector
from detkit.matching.trace import NO_CLASS, tracing
from detkit.structures import Affine
from tests.evaluation.test_errors import CATEGORIES, results_of, truth_of

#: Twice as wide and shifted down: what the network sees of the original.
AFFINE = Affine(scale_x=2.0, scale_y=1.0, shift_y=5.0)
CAT = (20.0, 10, 40, 30)  # x1 y1 x2 y2 of the one object, original px
NEAR = (22.0, 10, 42, 30)  # IoU 18 / 22 with it
FAR = (70.0, 50, 90, 70)


def selection(*rows):
    """``rows``: box in the original, score, label, fate, and the row that suppressed it."""
    boxes = AFFINE.apply(torch.tensor([r[0] for r in rows]))
    scores, labels = torch.tensor([r[1] for r in rows]), torch.tensor([r[2] for r in rows])
    fates = torch.tensor([int(r[3]) for r in rows], dtype=torch.uint8)
    return Selection(boxes, scores, labels, fates, torch.tensor([r[4] if len(r) > 4 else -1 for r in rows]))


def cause(found, *selections, threshold=0.5, truth=None):
    """What is said of the first object of ``truth``, which is a cat."""
    truth = truth or truth_of((20, 10, 20, 20, 0))
    image = image_errors(truth, results_of(*found), CATEGORIES)
    trails = find_trails(selections, truth, AFFINE)
    return next(m for m in explain_missed(image, trails, threshold, stages_of(selections)) if m.index == 0)


def test_never_proposed():
    missed = cause([], selection((FAR, 0.9, NO_CLASS, Fate.KEPT)), selection((NEAR, 0.9, 1, Fate.LOW_SCORE)))
    assert missed.cause == Cause.NEVER_PROPOSED, "a candidate of another class, or far away, does not count"
    assert describe(missed, CATEGORIES.names) == "never proposed"


@pytest.mark.parametrize(
    ("fate", "expected"),
    [(Fate.CUT, Cause.CUT), (Fate.SUPPRESSED, Cause.SUPPRESSED), (Fate.OVER_LIMIT, Cause.OVER_LIMIT),
     (Fate.TOO_SMALL, Cause.TOO_SMALL)],
)  # fmt: skip
def test_removed_in_either_stage(fate, expected):
    proposals = selection((FAR, 0.8, NO_CLASS, Fate.KEPT), (NEAR, 0.3, NO_CLASS, fate, 0))
    missed = cause([], proposals)
    assert (missed.cause, missed.at_proposals) == (expected, True)
    candidates = selection((FAR, 0.8, 0, Fate.KEPT), (NEAR, 0.6, 0, fate, 0))
    missed = cause([], proposals, candidates)
    assert (missed.cause, missed.at_proposals) == (expected, False), "it came as far as the second stage"
    assert missed.candidate.box == pytest.approx(NEAR), "in px of the original"
    assert missed.iou == pytest.approx(18 / 22)
    assert (missed.candidate.score, missed.candidate.label) == (pytest.approx(0.6), 0)
    assert missed.other.box == pytest.approx(FAR), "what removed it"
    missed = cause([], candidates, threshold=0.7)
    assert missed.cause == Cause.LOW_SCORE, "it would not have been shown anyway"


def test_what_soft_nms_lowered_below_the_threshold_was_removed_by_nms():
    beside = (31.0, 10, 51, 30)  # IoU 9 / 31 with the object
    between = (25.0, 10, 45, 30)  # 15 / 25 with the object, 14 / 26 with what lies beside it
    left = 0.8 * math.exp(-((14 / 26) ** 2) / 0.5)
    for least, kept in ((0.01, [(25, 10, 20, 20, 0, left)]), (0.48, [])):
        with tracing() as trace:
            SoftSelector(score_threshold=least).of_one_class(
                AFFINE.apply(torch.tensor([beside, between])),
                torch.tensor([0.9, 0.8]),
                torch.zeros(2).long(),
                (99, 199),
            )
        missed = cause([(31, 10, 20, 20, 0, 0.9), *kept], *trace.selections)
        assert describe(missed, CATEGORIES.names) == (
            "removed by NMS, its best candidate was cat 0.80 (IoU 0.60), suppressed by cat 0.90"
        )
        assert cause([(31, 10, 20, 20, 0, 0.9), *kept], *trace.selections, threshold=0.85).cause != Cause.SUPPRESSED


def test_the_furthest_candidate_counts_and_of_those_the_best():
    rows = [(NEAR, 0.9, 0, Fate.SUPPRESSED, 3), (CAT, 0.95, 0, Fate.CUT), (CAT, 0.8, 0, Fate.SUPPRESSED, 3)]
    missed = cause([], selection(*rows, (FAR, 0.97, 0, Fate.KEPT)))
    assert missed.cause == Cause.SUPPRESSED
    assert missed.candidate.score == pytest.approx(0.9)
    assert describe(missed, CATEGORIES.names) == (
        "removed by NMS, its best candidate was cat 0.90 (IoU 0.82), suppressed by cat 0.97"
    )


def test_below_the_threshold_of_the_head_or_of_the_report():
    low = selection((NEAR, 0.03, 0, Fate.LOW_SCORE))
    assert cause([], low).cause == Cause.LOW_SCORE
    missed = cause([(22, 10, 20, 20, 0, 0.3)], selection((NEAR, 0.3, 0, Fate.KEPT)), low)
    assert missed.cause == Cause.LOW_SCORE
    assert missed.candidate.score == pytest.approx(0.3)


def test_wrong_class_goes_before_low_score():
    found = [(22, 10, 20, 20, 1, 0.8)]
    missed = cause(found, selection((NEAR, 0.1, 0, Fate.LOW_SCORE)))
    assert missed.cause == Cause.WRONG_CLASS
    assert describe(missed, CATEGORIES.names) == "wrong class, instead dog 0.80 (IoU 0.82)"
    both = truth_of((20, 10, 20, 20, 0), (22, 10, 20, 20, 1))
    assert cause(found, truth=both).cause == Cause.NEVER_PROPOSED, "that detection is right about a dog"


def test_badly_placed():
    assert cause([(34, 10, 20, 20, 0, 0.8)]).cause == Cause.BADLY_PLACED  # IoU 6 / 34
    assert cause([(39, 10, 20, 20, 0, 0.8)]).cause == Cause.NEVER_PROPOSED, "IoU 1 / 39 is nowhere near"
    two = truth_of((20, 10, 20, 20, 0), (50, 10, 20, 20, 0))
    assert cause([(36, 10, 20, 20, 0, 0.8)], truth=two).cause == Cause.NEVER_PROPOSED, "it is nearer to the other"
    moved = cause([], selection((NEAR, 0.7, NO_CLASS, Fate.KEPT)))
    assert (moved.cause, moved.at_proposals) == (Cause.BADLY_PLACED, False)


def test_one_detection_for_two():
    two = truth_of((20, 10, 20, 20, 0), (22, 10, 20, 20, 0))
    missed = cause([(23, 10, 20, 20, 0, 0.9)], truth=two)
    assert missed.cause == Cause.SHARED
    assert missed.other.score == pytest.approx(0.9)


def test_found_objects_and_crowds_are_not_missed():
    truth = truth_of((20, 10, 20, 20, 0), (60, 10, 20, 20, 0, True))
    image = image_errors(truth, results_of((20, 10, 20, 20, 0, 0.9)), CATEGORIES)
    assert explain_missed(image, [[], []], 0.5) == []
    assert [m.index for m in explain_missed(image, [[], []], 0.95)] == [0], "not from that score on"
    assert find_trails([selection(((60.0, 10, 80, 30), 0.9, 0, Fate.KEPT))], truth, AFFINE) == [[], []]


def test_a_detector_that_leaves_no_trace():
    image = image_errors(truth_of((20, 10, 20, 20, 0)), results_of(), CATEGORIES)
    assert explain_missed(image, None, 0.5)[0].cause == Cause.NOT_TRACED
    assert np.array_equal(image.missed, [True])


def test_in_a_cascade_the_last_stage_with_a_candidate_is_the_one_that_lost_it():
    first = replace(selection((NEAR, 0.9, NO_CLASS, Fate.KEPT)), stage="P-Net")
    second = replace(selection((NEAR, 0.4, NO_CLASS, Fate.LOW_SCORE)), stage="R-Net")
    missed = cause([], first, second)
    assert (missed.cause, missed.stage) == (Cause.LOW_SCORE, "R-Net")
    assert describe(missed, CATEGORIES.names).startswith(
        "below threshold in R-Net, its best candidate was proposal 0.40"
    )
    assert cause_of(missed) == "below threshold (R-Net)"
    lost = cause([], first, replace(selection((FAR, 0.4, NO_CLASS, Fate.KEPT)), stage="R-Net"))
    assert (lost.cause, lost.stage) == (Cause.BADLY_PLACED, "P-Net"), "R-Net had nothing near it any more"


#: A cascade that looked elsewhere.
ELSEWHERE = [
    replace(selection((FAR, 0.4, label, Fate.KEPT)), stage=stage)
    for stage, label in (("P-Net", NO_CLASS), ("P-Net", NO_CLASS), ("R-Net", NO_CLASS), ("O-Net", 0))
]


def test_what_no_window_of_a_cascade_is_near_is_lost_in_its_first_stage():
    missed = cause([], *ELSEWHERE)
    assert (missed.cause, missed.stage) == (Cause.NEVER_PROPOSED, "P-Net")
    assert cause_of(missed) == "never proposed (P-Net)"
    assert describe(missed, CATEGORIES.names) == "never proposed in P-Net, no window has an IoU of 0.5 with it"


@pytest.mark.parametrize(
    ("found", "others", "expected"),
    [
        ((22, 10, 20, 20, 1, 0.8), (), Cause.WRONG_CLASS),
        ((34, 10, 20, 20, 0, 0.8), (), Cause.BADLY_PLACED),
        ((23, 10, 20, 20, 0, 0.9), [(22, 10, 20, 20, 0)], Cause.SHARED),
    ],
)
def test_what_a_detection_of_a_cascade_is_wrong_about_is_lost_in_its_last_stage(found, others, expected):
    truth = truth_of((20, 10, 20, 20, 0), *others)
    missed = cause([found], *ELSEWHERE, truth=truth)
    assert (missed.cause, missed.stage) == (expected, "O-Net")
    assert cause([found], truth=truth).stage == "", "of a detector that names no stages"


def test_no_stage_of_a_cascade_is_to_blame_for_the_merge_of_its_views():
    kept = replace(selection((NEAR, 0.9, 0, Fate.KEPT)), stage="O-Net")
    merged = selection((NEAR, 0.2, 0, Fate.KEPT), (NEAR, 0.9, 0, Fate.MERGED, 0))
    lost = cause([], kept, merged)
    assert (lost.cause, lost.stage) == (Cause.MERGED, "")
