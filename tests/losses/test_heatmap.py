"""The heatmap loss at its edges; its values by hand are with CenterNet's."""

import math

import pytest
import torch

from detkit.losses import PenaltyReducedFocal

HEAT = torch.tensor([1.0, 0.5, 0.0])


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("logit", [18.0, 1000.0, -18.0, -1000.0])
def test_the_gradient_is_finite_at_any_logit(alpha, logit):
    logits = torch.full((3,), logit, requires_grad=True)
    loss = PenaltyReducedFocal(alpha=alpha)(logits, HEAT)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_what_is_infinitely_right_costs_nothing():
    logits = torch.tensor([math.inf, -math.inf, -math.inf], requires_grad=True)
    loss = PenaltyReducedFocal()(logits, HEAT)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.tolist() == gradient.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["weight", "alpha", "beta"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_numbers_that_train_backwards_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number from 0 on, not {value}"):
        PenaltyReducedFocal(**{name: value})
