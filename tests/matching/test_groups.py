"""NMS by group is NMS of each group, whatever their number."""

import pytest
import torch
from torchvision.ops import nms

from detkit.matching import groups as module
from detkit.matching import nms_by_group


def one_by_one(boxes, scores, groups, threshold):
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    for group in groups.unique():
        index = (groups == group).nonzero().squeeze(1)
        keep[index[nms(boxes[index].double(), scores[index].double(), threshold)]] = True
    kept = keep.nonzero().squeeze(1)
    return kept[scores[kept].argsort(descending=True, stable=True)]


@pytest.mark.parametrize("parcel", [1, 7, 400, 10_000])
@pytest.mark.parametrize("num_groups", [1, 5, 3000])
def test_equals_nms_of_each_group_in_parcels_of_any_size(num_groups, parcel, monkeypatch):
    monkeypatch.setitem(module._PARCEL, "cpu", parcel)
    g = torch.Generator().manual_seed(num_groups)
    corner = torch.rand(1500, 2, generator=g) * 800
    boxes = torch.cat([corner, corner + torch.rand(1500, 2, generator=g) * 300], 1)
    scores = torch.randint(0, 50, (1500,), generator=g) / 50  # with ties
    groups = torch.randint(0, num_groups, (1500,), generator=g)
    assert torch.equal(nms_by_group(boxes, scores, groups, 0.5), one_by_one(boxes, scores, groups, 0.5))


@pytest.mark.parametrize("parcel", [1, 400])
def test_a_hair_counts_in_the_last_of_many_groups(parcel, monkeypatch):
    """Moved apart by 20,000 groups in float32, boxes lose what is smaller than an eighth of a pixel or so."""
    monkeypatch.setitem(module._PARCEL, "cpu", parcel)
    pair = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 5.01, 10.0, 10.0]])  # IoU 0.499
    boxes = torch.cat([pair, pair, torch.tensor([[0.0, 0.0, 1300.0, 800.0]])])
    groups = torch.tensor([0, 0, 19_999, 19_999, 7])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    assert nms_by_group(boxes, scores, groups, 0.4985).tolist() == [0, 2, 4]
    assert nms_by_group(boxes, scores, groups, 0.4995).tolist() == [0, 1, 2, 3, 4]


def test_nothing_in_nothing_out_and_half_types():
    empty = nms_by_group(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert empty.dtype == torch.int64
    assert len(empty) == 0
    boxes = torch.tensor([[0.0, 0.0, 400.0, 400.0], [1.0, 0.0, 400.0, 400.0]], dtype=torch.float16)
    kept = nms_by_group(boxes, torch.tensor([0.5, 0.6], dtype=torch.bfloat16), torch.tensor([3, 3]), 0.5)
    assert kept.tolist() == [1]
