"""The nouns: shape checks, frames, and box arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detkit.structures import Affine, Batch, Categories, Detections, ImageMeta, Images, Losses, Target, boxes
from detkit.structures.columns import columns_of

number = st.floats(-1e3, 1e3, width=32)
size = st.floats(0, 1e3, width=32)
box = st.tuples(number, number, size, size)
scale = st.floats(0.1, 10) | st.floats(-10, -0.1)


def as_boxes(values):
    return boxes.xywh_to_xyxy(torch.tensor(values, dtype=torch.float64).reshape(-1, 4))


@given(st.lists(box, max_size=5), st.lists(box, max_size=5))
def test_iou_is_symmetric_and_bounded(a, b):
    a, b = as_boxes(a), as_boxes(b)
    iou = boxes.pairwise_iou(a, b)
    assert torch.equal(iou, boxes.pairwise_iou(b, a).T)
    assert ((iou >= 0) & (iou <= 1 + 1e-9)).all()


def test_iou_equals_torchvision_and_empty_boxes_are_no_nan():
    g = torch.Generator().manual_seed(0)
    a, b = (
        as_boxes((torch.rand(20, 4, generator=g) * 50).tolist()),
        as_boxes((torch.rand(30, 4, generator=g) * 50).tolist()),
    )
    torch.testing.assert_close(boxes.pairwise_iou(a, b), box_iou(a, b))
    assert boxes.pairwise_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_cover_is_the_share_inside_the_crowd():
    crowd = torch.tensor([[0.0, 0, 100, 100]])
    assert boxes.pairwise_cover(torch.tensor([[90.0, 0, 110, 10]]), crowd).item() == pytest.approx(0.5)
    assert boxes.pairwise_cover(torch.tensor([[4.0, 4, 4.5, 4.5]]), crowd).item() == 1, "smaller than a pixel too"


def test_a_box_of_the_least_size_is_large_enough():
    assert boxes.is_larger(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [0, 0, 1.9, 2]]), 2.0).tolist() == [1, 0, 0]


def test_sizes_grow_by_the_root_of_what_areas_grow_by():
    assert Affine(2.0, 8.0).scale == Affine(-2.0, 8.0, 3.0).scale == 4  # sqrt(2 * 8), mirrored or not


@given(st.lists(box, min_size=1, max_size=4), scale, scale, number, number)
def test_affine_there_and_back(values, sx, sy, tx, ty):
    original = as_boxes(values)
    affine = Affine(sx, sy, tx, ty)
    there = affine.apply(original)
    assert (there[:, 2:] >= there[:, :2]).all(), "a flip must keep the corners in order"
    torch.testing.assert_close(affine.undo(there), original, rtol=1e-9, atol=1e-6)


@given(st.lists(box, min_size=1, max_size=4), scale, scale, number)
def test_affines_compose(values, sx, sy, t):
    first, second = Affine(sx, sy, t, -t), Affine(-1.0, 2.0, 5.0, t)
    original = as_boxes(values)
    torch.testing.assert_close(
        first.then(second).apply(original), second.apply(first.apply(original)), rtol=1e-9, atol=1e-6
    )


def test_padding_mask_and_size_check():
    metas = (ImageMeta(1, "a.jpg", (2, 3), (2, 3)), ImageMeta(2, "b.jpg", (4, 4), (4, 4)))
    images = Images(torch.zeros(2, 3, 4, 4), metas)
    assert images.valid_mask().sum((1, 2, 3)).tolist() == [6, 16]
    with pytest.raises(ValueError, match=r"a\.jpg: size \(2, 9\) does not fit into the batch of 4 x 4"):
        Images(torch.zeros(1, 3, 4, 4), (ImageMeta(1, "a.jpg", (2, 9), (2, 9)),))
    with pytest.raises(ValueError, match="2 images but 1 targets"):
        Batch(images, (Target.empty(),))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"boxes must be \(N, 4\), not \(3,\)"):
        Target(torch.zeros(3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"2 boxes but scores \(1,\) and labels \(2,\)"):
        Detections(torch.zeros(2, 4), torch.zeros(1), torch.zeros(2))


def test_losses_add_up_and_names_must_differ():
    a, b = Losses({"x": torch.tensor(1.0)}, {"n": torch.tensor(3)}), Losses({"y": torch.tensor(2.0)})
    assert Losses.merge(a, b).total.item() == 3
    with pytest.raises(ValueError, match=r"loss names occur twice: \['x'\]"):
        Losses.merge(a, a)
    with pytest.raises(ValueError, match=r"loss term 'x' must be a scalar, not \(2,\)"):
        Losses({"x": torch.zeros(2)})


def test_categories_say_how_they_differ():
    one, two = Categories(("cat", "dog"), (1, 7)), Categories(("cat", "cow"), (1, 7))
    assert one.difference(one) == ""
    assert one.difference(two) == "missing ['dog']; not known ['cow']"
    assert "other order or ids" in one.difference(Categories(("cat", "dog"), (1, 2)))
    assert Categories.from_dict(one.to_dict()) == one
    with pytest.raises(ValueError, match=r"category id given more than once: \[1\]"):
        Categories(("a", "b"), (1, 1))
    with pytest.raises(ValueError, match="at least one category"):
        Categories((), ())


def batch_of(*counts):
    """Images of which every other one has landmarks, with ``counts`` objects, the first of each to be ignored."""
    g = torch.Generator().manual_seed(0)
    targets = tuple(
        Target(
            torch.rand(n, 4, generator=g),
            torch.randint(0, 9, (n,), generator=g),
            torch.arange(n) == 0,
            torch.rand(n, 5, 3, generator=g) if i % 2 else None,
        )
        for i, n in enumerate(counts)
    )
    metas = tuple(ImageMeta(i, f"{i}.png", (4, 4), (4, 4), key=i) for i in range(len(counts)))
    return Batch(Images(torch.zeros(len(counts), 3, 4, 4), metas), targets)


@pytest.mark.parametrize("counts", [(3, 2), (0, 0), (0, 1, 4, 0, 2, 7, 1, 5)], ids=str)
def test_a_batch_is_moved_in_four_pieces_and_stays_what_it_is(counts, monkeypatch):
    moves = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (moves.append(self), self.clone())[1])
    batch = batch_of(*counts)
    moved = batch.pin_memory()
    assert len(moves) == 4, "pixels, and the columns of floats, whole numbers and truths"
    assert moved.images.meta == batch.images.meta
    for ours, theirs in zip(moved.targets, batch.targets, strict=True):
        assert ours._kinds is not None, "found before, so that no GPU is asked"
        assert (ours.landmarks is None) == (theirs.landmarks is None)
        for mine, its in zip([*columns_of(ours), *ours.kinds], [*columns_of(theirs), *theirs.kinds], strict=True):
            assert mine.dtype == its.dtype
            assert torch.equal(mine, its)


def test_a_batch_that_is_there_is_not_copied():
    batch = batch_of(3, 2)
    assert all(a is b for a, b in zip(batch.to("cpu").targets, batch.targets, strict=True))
    assert [t.boxes.device.type for t in batch.to("meta").targets] == ["meta", "meta"]


def test_wanted_leaves_crowds_out():
    target = Target(torch.rand(3, 4), torch.arange(3), torch.tensor([False, True, False]))
    assert target.wanted.labels.tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.float64])
def test_boxes_of_any_type_are_reckoned_in_float32_at_least(dtype):
    """300 x 300 px are more than float16's largest number; whole numbers and bytes neither truncate nor wrap round."""
    side = 200 if dtype == torch.uint8 else 400
    a = torch.tensor([[0, 0, side, side], [8, 16, 40, 32]]).to(dtype)
    b = a.float() if dtype != torch.float64 else a
    for function in (
        *(boxes.area, boxes.xywh_to_xyxy, boxes.xyxy_to_xywh, boxes.cxcywh_to_xyxy, boxes.xyxy_to_cxcywh),
        lambda x: boxes.clip(x, (90_000, 90_000)),
        lambda x: boxes.is_larger(x, 20.5),
        lambda x: boxes.is_larger(x.flip(1), 0.5),
        lambda x: boxes.pairwise_iou(x, x.flip(0)),
        lambda x: boxes.paired_iou(x, x.flip(0)),
        lambda x: boxes.pairwise_cover(x, x),
        Affine(0.5, -0.25, 0.5, 400.0).apply,
        Affine(0.5, -0.25, 0.5, 400.0).undo,
    ):
        assert torch.equal(function(a), function(b))
        assert function(a).isfinite().all()
        assert function(a).dtype in (torch.bool, b.dtype)
