"""Box losses against hand-computed values and torchvision's."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops as ops
from hypothesis import given
from hypothesis import strategies as st

from detkit.losses import L1, CIoULoss, DIoULoss, GIoULoss, IoULoss, SmoothL1

IOU_LOSSES = [IoULoss, GIoULoss, DIoULoss, CIoULoss]


def pairs(n: int = 50):
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(2, n, 2, generator=g, dtype=torch.float64) * 50
    size = torch.rand(2, n, 2, generator=g, dtype=torch.float64) * 60 + 1
    return torch.cat([corner, corner + size], dim=2).unbind(0)


def test_hand_computed_values():
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10]])
    iou = 50 / 150
    assert IoULoss()(a, b).item() == pytest.approx(1 - iou)
    assert GIoULoss()(a, b).item() == pytest.approx(1 - iou)  # the hull is the union
    assert DIoULoss()(a, b).item() == pytest.approx(1 - (iou - 25 / (15**2 + 10**2)))
    assert CIoULoss()(a, b).item() == pytest.approx(1 - (iou - 25 / 325))  # equal aspect ratios
    apart = torch.tensor([[20.0, 0, 30, 10]])
    assert GIoULoss()(a, apart).item() == pytest.approx(1 + 100 / 300)
    wide = torch.tensor([[0.0, 0, 20, 10]])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    d = 0.5 - 25 / 500
    assert CIoULoss()(a, wide).item() == pytest.approx(1 - (d - v * v / (1 - 0.5 + v)))
    assert L1()(torch.tensor([[1.0, -2, 0, 0.5]]), torch.zeros(1, 4)).item() == pytest.approx(3.5)
    assert SmoothL1(beta=1.0)(torch.tensor([[0.5, 2, 0, 0]]), torch.zeros(1, 4)).item() == pytest.approx(0.125 + 1.5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GIoULoss, ops.generalized_box_iou_loss),
        (DIoULoss, ops.distance_box_iou_loss),
        (CIoULoss, ops.complete_box_iou_loss),
    ],
)
def test_values_and_gradients_equal_torchvision(ours, theirs):
    a, b = pairs()
    a1, a2 = a.clone().requires_grad_(), a.clone().requires_grad_()
    mine, other = ours()(a1, b), theirs(a2, b)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    mine.sum().backward()
    other.sum().backward()
    torch.testing.assert_close(a1.grad, a2.grad, rtol=1e-4, atol=1e-6)


def test_smooth_l1_equals_torch():
    a, b = pairs()
    expected = F.smooth_l1_loss(a, b, beta=2.0, reduction="none").sum(1)
    torch.testing.assert_close(SmoothL1(beta=2.0)(a, b), expected)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_equal_boxes_cost_nothing(loss):
    a, _ = pairs()
    torch.testing.assert_close(loss()(a, a), torch.zeros(len(a), dtype=a.dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("corners", [[[10.0, 10, 10, 10]], [[10.0, 10, 20, 10]], [[10.0, 10, 10, 20]]])
def test_a_hull_without_area_has_nothing_that_is_unfilled(corners):
    """As in torchvision: IoU 0 and a loss of 1; and no gradient of 1 / 1e-7."""
    a, b = torch.tensor(corners, requires_grad=True), torch.tensor(corners)
    value = GIoULoss()(a, b)
    torch.testing.assert_close(value, ops.generalized_box_iou_loss(a, b, reduction="none"))
    value.sum().backward()
    assert torch.equal(a.grad, torch.zeros(1, 4))


@pytest.mark.parametrize("loss", [*IOU_LOSSES, L1, SmoothL1])
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8))
def test_gradient_is_finite_for_any_boxes(loss, numbers):
    predicted = torch.tensor([numbers[:4]], requires_grad=True)
    corner = torch.tensor([numbers[4:]])
    target = torch.cat([corner[:, :2], corner[:, :2] + corner[:, 2:].abs()], dim=1)
    value = loss()(predicted, target)
    value.sum().backward()
    assert value.isfinite().all()
    assert predicted.grad.isfinite().all()


def test_smooth_l1_refuses_beta_zero():
    with pytest.raises(ValueError, match="beta must be positive, not 0; for beta 0 take L1"):
        SmoothL1(beta=0)


@pytest.mark.parametrize("loss", [*IOU_LOSSES, L1, SmoothL1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_boxes_of_any_type_are_reckoned_in_float32_at_least(loss, dtype):
    predicted, target = torch.tensor([[0, 0, 400, 400]]).to(dtype), torch.tensor([[0, 80, 320, 400]]).to(dtype)
    value = loss()(predicted, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss()(predicted.float(), target.float()))


@pytest.mark.parametrize("loss", [*IOU_LOSSES, L1, SmoothL1])
@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_weight_that_trains_backwards_is_refused(loss, weight):
    with pytest.raises(ValueError, match=f"weight must be a number from 0 on, not {weight}"):
        loss(weight=weight)
