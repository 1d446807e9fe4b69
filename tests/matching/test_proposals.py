"""Proposals of a batch are those of its images."""

import torch

from detkit.matching import NO_SCORE, select_proposals, top_proposals
from detkit.structures import SizeRange
from detkit.structures.boxes import clip, pairwise_iou

SIZES = [(100, 100), (60, 90)]


def levels(seed=0):
    """Two levels of two images: boxes (2, N, 4) and scores (2, N), some of them of no candidate."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for num in (80, 30):
        corner = torch.rand(2, num, 2, generator=g) * 80
        boxes = torch.cat([corner, corner + torch.rand(2, num, 2, generator=g) * 60], dim=2)
        scores = torch.rand(2, num, generator=g)
        found.append((boxes, scores.masked_fill(torch.rand(2, num, generator=g) < 0.2, NO_SCORE)))
    return found


def greedy(found, image, ranges=None, max_proposals=20):
    """In plain loops: the best of each level goes first and removes what it overlaps."""
    kept = []
    for level, (boxes, scores) in enumerate(found):
        boxes = clip(boxes[image], SIZES[image])
        left = [i for i in scores[image].argsort(descending=True).tolist() if scores[image, i] > 0]
        left = [i for i in left if (boxes[i, 2:] - boxes[i, :2]).min() >= 4]
        if ranges is not None:
            left = [i for i in left if ranges[level].holds(boxes[i : i + 1])]
        while left:
            best, *left = left
            kept.append((scores[image, best].item(), boxes[best].tolist()))
            left = [i for i in left if pairwise_iou(boxes[best : best + 1], boxes[i : i + 1]) <= 0.5]
    return sorted(kept, reverse=True)[:max_proposals]


def test_each_image_has_its_own():
    for ranges in (None, [SizeRange(0, 40), SizeRange(20)]):
        found = select_proposals(
            levels(), SIZES, iou_threshold=0.5, max_proposals=20, min_size=4.0, valid_ranges=ranges
        )
        for image, (boxes, scores) in enumerate(found):
            wanted = greedy(levels(), image, ranges)
            assert scores.tolist() == [score for score, _ in wanted]
            assert boxes.tolist() == [box for _, box in wanted]


def test_the_best_of_each_image_and_no_score_where_there_are_no_more():
    scores = torch.tensor([[0.1, 0.9, 0.5], [NO_SCORE, 0.3, NO_SCORE]])
    boxes, best = top_proposals(scores, lambda index: index[..., None].expand(-1, -1, 4).float(), SIZES, num=2)
    assert boxes[:, :, 0].tolist()[0] == [1, 2]
    assert boxes[1, 0, 0] == 1
    assert torch.equal(best, torch.tensor([[0.9, 0.5], [0.3, NO_SCORE]]))
