"""The trace: what became of each candidate, and that watching changes nothing."""

import math

import pytest
import torch

from detkit.matching import (
    NMS,
    NO_SCORE,
    WBF,
    Fate,
    merge_views,
    select_candidates,
    select_detections,
    select_proposals,
    top_candidates,
    top_peaks,
    top_proposals,
    tracing,
)
from detkit.matching.trace import NO_CLASS, active_trace
from detkit.structures import Detections
from detkit.structures.boxes import pairwise_iou

SIZE = (100, 100)
BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [90, 90, 130, 140], [5, 5, 5, 9]])


def random_boxes(count, seed):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 80
    return torch.cat([corner, corner + torch.rand(count, 2, generator=g) * 40], dim=1), g


def test_detections_by_hand():
    scores = torch.zeros(5, 2)
    scores[0, 0], scores[1, 0], scores[2, 1], scores[3, 0], scores[4, 0] = 0.9, 0.8, 0.7, 0.6, 0.95
    with tracing() as trace:
        found = select_detections(
            BOXES[:, None], scores, SIZE, score_threshold=0.05, iou_threshold=0.5, max_detections=2, min_size=1.0
        )
    low, rest = trace.selections
    assert len(low.boxes) == 5
    assert (low.fates == Fate.LOW_SCORE).all()
    # above the threshold, candidate by candidate: 0.9, 0.8 (overlaps 0.9), 0.7 of the other class, 0.6, 0.95 of no width
    assert rest.fates.tolist() == [Fate.KEPT, Fate.SUPPRESSED, Fate.KEPT, Fate.OVER_LIMIT, Fate.TOO_SMALL]
    assert rest.suppressors.tolist() == [-1, 0, -1, -1, -1]
    assert rest.boxes[3].tolist() == [90, 90, 100, 100], "clipped to the image"
    assert torch.equal(found.boxes, rest.boxes[rest.fates == Fate.KEPT])


def test_the_suppressor_is_the_best_that_overlaps_enough():
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10], [6, 0, 16, 10]])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.4])  # 1 removes 0 and 2; 3 overlaps 1 by 6/14 and 2, which is gone, by 8/12
    with tracing() as trace:
        select_candidates(boxes, scores, torch.zeros(4).long(), SIZE, iou_threshold=0.4, max_detections=9)
    assert trace.selections[0].suppressors.tolist() == [1, -1, 1, 1]
    with tracing() as trace:
        select_candidates(boxes, scores, torch.zeros(4).long(), SIZE, iou_threshold=0.5, max_detections=9)
    assert trace.selections[0].suppressors.tolist() == [1, -1, 1, -1]
    boxes = torch.tensor([[4.0, 0, 14, 10], [6, 0, 16, 10], [0, 0, 10, 10]])  # 0 overlaps 2 by 6/14, 1 by 8/12
    with tracing() as trace:
        select_candidates(
            boxes, torch.tensor([0.1, 0.8, 0.9]), torch.zeros(3).long(), SIZE, iou_threshold=0.4, max_detections=9
        )
    assert trace.selections[0].suppressors.tolist() == [2, -1, -1], "the better one did it, though the other is nearer"


def test_what_soft_nms_lowers_is_suppressed_by_what_overlaps_it_most():
    """Candidate 0 is lowered by 1 (IoU 2/18) and by 2 (IoU 8/12); the other class lowers nothing."""
    boxes = torch.tensor([[2.0, 0, 12, 10], [10, 0, 20, 10], [0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.5, 0.9, 0.8, 0.7, 0.3]), torch.tensor([0, 0, 0, 1, 0])
    left = 0.5 * math.exp(-((2 / 18) ** 2) / 0.5) * math.exp(-((8 / 12) ** 2) / 0.5)
    for least, kept in ((left - 1e-3, [1, 2, 3, 4, 0]), (left + 1e-3, [1, 2, 3, 4])):
        with tracing() as trace:
            found = select_candidates(
                boxes, scores, labels, SIZE, iou_threshold=None, max_detections=9, sigma=0.5, score_threshold=least
            )
        [told] = trace.selections
        assert found.boxes.tolist() == boxes[kept].tolist()
        rest = [0.9, 0.8, 0.7, 0.3]
        if 0 in kept:
            assert found.scores[-1].item() == pytest.approx(left)
            assert told.fates.tolist() == [Fate.KEPT] * 5 + [Fate.SUPPRESSED]
            assert told.suppressors.tolist() == [-1] * 5 + [2]
            assert told.scores.tolist() == pytest.approx([left, *rest, 0.5])
            assert told.boxes[5].tolist() == boxes[0].tolist()
        else:
            assert told.fates.tolist() == [Fate.SUPPRESSED] + [Fate.KEPT] * 4
            assert told.suppressors.tolist() == [2, -1, -1, -1, -1]
            assert told.scores.tolist() == pytest.approx([0.5, *rest]), "its own score, and not what is left of it"


def test_only_a_better_one_lowers():
    boxes, labels = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [2, 0, 12, 10]]), torch.zeros(3).long()
    scores = torch.tensor([0.9, 0.8, 0.7])  # the last overlaps the second most, and scores less
    with tracing() as trace:
        select_candidates(boxes, scores, labels, SIZE, iou_threshold=None, max_detections=9, sigma=0.5)
    assert trace.selections[0].suppressors.tolist() == [-1, -1, -1, 0, 1]


def test_proposals_have_no_class_and_levels_do_not_suppress_each_other():
    with tracing() as trace:
        levels = [
            (BOXES[None, :3], torch.tensor([[0.5, NO_SCORE, 0.9]])),
            (BOXES[None, 2:4], torch.tensor([[0.7, NO_SCORE]])),
        ]
        ((boxes, _),) = select_proposals(levels, [SIZE], iou_threshold=0.7, max_proposals=9)
    (selection,) = trace.selections
    assert selection.fates.tolist() == [Fate.SUPPRESSED, Fate.KEPT, Fate.KEPT]
    assert selection.suppressors.tolist() == [1, -1, -1]
    assert (selection.labels == NO_CLASS).all()
    assert len(boxes) == 2


def test_top_candidates_and_what_they_leave_behind():
    scores = torch.tensor([[0.9, 0.1], [0.3, 0.8], [0.02, 0.7]])
    with tracing() as trace:
        boxes, best, labels = top_candidates(scores, lambda i: BOXES[i], SIZE, score_threshold=0.05, num=2)
    assert best.tolist() == pytest.approx([0.9, 0.8])
    assert labels.tolist() == [0, 1]
    assert torch.equal(boxes, BOXES[:2])
    (selection,) = trace.selections
    assert selection.scores.tolist() == pytest.approx([0.1, 0.3, 0.02, 0.7])
    assert selection.labels.tolist() == [1, 0, 0, 1]
    assert selection.fates.tolist() == [Fate.CUT, Fate.CUT, Fate.LOW_SCORE, Fate.CUT]
    assert torch.equal(selection.boxes, BOXES[[0, 1, 2, 2]])


def test_peaks_and_the_cells_on_their_slopes():
    heat = torch.zeros(2, 3, 5)
    heat[0, 1, 1], heat[0, 1, 2], heat[0, 1, 4], heat[1, 0, 0] = 0.9, 0.6, 0.3, 0.8
    cells = torch.arange(15.0)[:, None] * torch.ones(4) + torch.tensor([0.0, 0, 5, 5])

    def select(num=9):
        return top_peaks(heat, lambda i: cells[i], SIZE, score_threshold=0.1, num=num)

    boxes, scores, labels = select()
    assert scores.tolist() == pytest.approx([0.9, 0.8, 0.3]), "0.6 stands beside 0.9; the maps do not meet"
    assert labels.tolist() == [0, 1, 0]
    assert torch.equal(boxes, cells[[6, 0, 9]])
    with tracing() as trace:
        watched = select(num=2)
    assert torch.equal(watched[0], boxes[:2])
    slope, rest = trace.selections
    assert slope.fates.tolist() == [Fate.SUPPRESSED, Fate.KEPT]
    assert slope.scores.tolist() == pytest.approx([0.6, 0.9])
    assert torch.equal(slope.boxes, cells[[7, 6]])
    assert slope.suppressors.tolist() == [1, -1]
    assert rest.scores[rest.fates == Fate.CUT].tolist() == pytest.approx([0.3])
    assert len(rest.boxes) == 28


def test_only_the_best_of_what_is_left_behind_is_recorded(monkeypatch):
    monkeypatch.setattr("detkit.matching.select.MOST_TRACED", 3)
    scores = torch.tensor([[0.01], [0.03], [0.9], [0.02], [0.04]])
    with tracing() as trace:
        top_candidates(scores, lambda i: BOXES[i], SIZE, score_threshold=0.05, num=3)
        select_detections(
            BOXES[:, None], scores, SIZE, score_threshold=0.05, iou_threshold=0.5, max_detections=2, min_size=1.0
        )
    for selection in trace.selections[:2]:
        assert selection.scores.tolist() == pytest.approx([0.03, 0.02, 0.04])


def test_top_proposals():
    with tracing() as trace:
        scores = torch.tensor([[0.2, 0.9, 0.4, NO_SCORE]])
        boxes, best = top_proposals(scores, lambda i: BOXES[i], [SIZE], num=1)
    assert torch.equal(boxes, BOXES[None, 1:2])
    assert best.flatten().tolist() == pytest.approx([0.9])
    assert trace.selections[0].fates.tolist() == [Fate.CUT] * 2
    assert torch.equal(trace.selections[0].boxes, BOXES[[0, 2]])
    boxes, _ = top_proposals(torch.rand(2, 3), lambda i: BOXES[i], [SIZE] * 2, num=5)
    assert boxes.shape == (2, 3, 4), "fewer candidates than asked for"


@pytest.mark.parametrize("seed", range(5))
def test_each_candidate_goes_once_and_watching_changes_nothing(seed):
    boxes, g = random_boxes(120, seed)
    scores = torch.rand(120, 3, generator=g)
    options = {"score_threshold": 0.3, "iou_threshold": 0.4, "max_detections": 25, "min_size": 4.0}
    plain = select_detections(boxes[:, None], scores, SIZE, **options)
    with tracing() as trace:
        watched = select_detections(boxes[:, None], scores, SIZE, **options)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(plain, name), getattr(watched, name))
    assert sum(len(s.boxes) for s in trace.selections) == 360
    last = trace.selections[-1]
    assert {Fate(f) for f in last.fates.tolist()} == {Fate.KEPT, Fate.OVER_LIMIT, Fate.SUPPRESSED, Fate.TOO_SMALL}
    assert int((last.fates == Fate.KEPT).sum()) == 25
    victims = (last.fates == Fate.SUPPRESSED).nonzero().squeeze(1)
    by = last.suppressors[victims]
    assert (last.labels[victims] == last.labels[by]).all()
    assert (last.scores[victims] <= last.scores[by]).all()
    assert (last.fates[by] >= Fate.OVER_LIMIT).all(), "only what survived suppresses"
    overlap = pairwise_iou(last.boxes[victims], last.boxes[by]).diagonal()
    assert (overlap > 0.4 - 1e-5).all()
    assert (last.suppressors[last.fates != Fate.SUPPRESSED] == -1).all()


def test_blocks_may_be_nested_and_end():
    assert active_trace() is None
    with tracing() as outer:
        with tracing() as inner:
            top_proposals(torch.rand(1, 3), lambda i: BOXES[i], [SIZE], num=1)
        assert active_trace() is outer
        with pytest.raises(RuntimeError), tracing():
            raise RuntimeError
        top_proposals(torch.rand(1, 3), lambda i: BOXES[i], [SIZE], num=2)
    assert active_trace() is None
    assert [len(t.selections[0].boxes) for t in (inner, outer)] == [2, 1]


def test_nothing_in_nothing_out():
    none = torch.zeros(0, 4)
    with tracing() as trace:
        select_proposals([(none[None], torch.zeros(1, 0))], [SIZE], iou_threshold=0.7, max_proposals=3)
        select_detections(
            none[:, None], torch.zeros(0, 2), SIZE, score_threshold=0.1, iou_threshold=0.5, max_detections=5
        )
        top_candidates(torch.zeros(0, 2), lambda i: none[i], SIZE, score_threshold=0.1, num=3)
    assert [len(s.boxes) for s in trace.selections] == [0, 0, 0, 0]


def found(*rows):
    """Detections of (x1, score, label), 10 px wide and high."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10] for x, _, _ in rows]).reshape(-1, 4)
    return Detections(
        boxes, torch.tensor([s for _, s, _ in rows]), torch.tensor([k for _, _, k in rows], dtype=torch.long)
    )


def test_a_merge_of_views_tells_what_it_took_by_what():
    views = [found((0.0, 0.9, 0), (30.0, 0.05, 1), (60.0, 0.4, 0)), found((1.0, 0.8, 0), (2.0, 0.7, 1), (60.0, 0.4, 0))]
    with tracing() as trace:
        left = merge_views(NMS(), views, score_threshold=0.1, limit=2)
    (selection,) = trace.selections
    order = [
        0.9,
        0.7,
        0.4,
        0.05,
        0.8,
    ]  # what NMS leaves, the best first, and what it took; one of two equal boxes stays
    assert selection.scores.tolist() == pytest.approx(order)
    assert selection.fates.tolist() == [Fate.KEPT, Fate.KEPT, Fate.OVER_LIMIT, Fate.LOW_SCORE, Fate.MERGED]
    assert selection.suppressors.tolist() == [-1, -1, -1, -1, 0]
    assert torch.equal(left.boxes, selection.boxes[:2])


def test_a_fused_box_took_the_place_of_those_that_it_is_made_of():
    views = [found((0.0, 0.9, 0)), found((2.0, 0.9, 0), (50.0, 0.8, 0))]
    with tracing() as trace:
        merge_views(WBF(), views, score_threshold=0.1, limit=9)
    (selection,) = trace.selections
    assert selection.boxes[:, 0].tolist() == pytest.approx([1, 50, 0, 2, 50])
    assert selection.scores.tolist() == pytest.approx([0.9, 0.4, 0.9, 0.9, 0.8]), "one of two views found the second"
    assert selection.fates.tolist() == [Fate.KEPT] * 2 + [Fate.MERGED] * 3
    assert selection.suppressors.tolist() == [-1, -1, 0, 0, 1]


def test_a_merge_that_leaves_nothing_has_nobody_to_blame():
    lost = found((0.0, 0.9, 0))
    with tracing() as trace:
        merge_views(WBF(least_score=0.95), [lost], score_threshold=0.1, limit=9)
        merge_views(NMS(), [found(), found()], score_threshold=0.1, limit=9)
        merge_views(NMS(), [found((80.0, 0.5, 0))], seen=[lost, found((80.0, 0.5, 0))], score_threshold=0.1, limit=9)
    alone, nothing, left_out = trace.selections
    assert (alone.fates.tolist(), alone.suppressors.tolist()) == ([Fate.MERGED], [-1])
    assert len(nothing.fates) == 0
    assert left_out.fates.tolist() == [Fate.KEPT, Fate.MERGED]
    assert left_out.suppressors.tolist() == [-1, -1], "what does not overlap it took nobody's place"
