"""Classification losses: hand-computed values, peers, and the bias that a prior asks for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from detkit.losses import BCE, CrossEntropy, Focal

K = 4
LABELS = torch.tensor([0, 3, 4, 4, 2])  # 4 is background


@pytest.fixture
def logits():
    return torch.randn(5, K + 1, generator=torch.Generator().manual_seed(0))


def test_cross_entropy_has_background_last(logits):
    loss = CrossEntropy(weight=2.0)
    assert loss.num_outputs(K) == K + 1
    torch.testing.assert_close(loss(logits, LABELS), 2 * F.cross_entropy(logits, LABELS, reduction="none"))
    torch.testing.assert_close(loss.scores(logits), logits.softmax(1)[:, :K])


def test_bce_sums_classes_and_background_is_all_negative(logits):
    logits = logits[:, :K]
    target = torch.zeros(5, K)
    target[0, 0] = target[1, 3] = target[4, 2] = 1
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    assert BCE().num_outputs(K) == K
    torch.testing.assert_close(BCE()(logits, LABELS), expected)
    torch.testing.assert_close(BCE().scores(logits), logits.sigmoid())


def test_focal_equals_torchvision_and_a_value_by_hand(logits):
    logits = logits[:, :K]
    target = F.one_hot(LABELS, K + 1)[:, :K].float()
    expected = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0).sum(1)
    torch.testing.assert_close(Focal()(logits, LABELS), expected)
    one = Focal(alpha=0.25, gamma=2.0)(torch.zeros(1, 1), torch.tensor([0])).item()
    assert one == pytest.approx(0.25 * 0.5**2 * math.log(2))


def test_focal_with_gamma_0_is_balanced_bce(logits):
    torch.testing.assert_close(Focal(alpha=0.5, gamma=0.0)(logits[:, :K], LABELS), 0.5 * BCE()(logits[:, :K], LABELS))


def test_prior_of_one_percent_is_the_papers_bias():
    assert Focal().initial_bias(3).tolist() == pytest.approx([-4.59512] * 3, abs=1e-4)
    assert BCE(prior_prob=0.1).initial_bias(1).item() == pytest.approx(-2.1972, abs=1e-4)
    assert BCE().initial_bias(2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("loss", [CrossEntropy(prior_prob=0.02), BCE(prior_prob=0.02), Focal(prior_prob=0.02)])
def test_first_scores_are_the_prior(loss):
    scores = loss.scores(loss.initial_bias(K)[None])
    total = scores.sum().item() if isinstance(loss, CrossEntropy) else scores[0, 0].item()
    assert total == pytest.approx(0.02)


def test_first_background_loss_is_the_analytic_one():
    """-K (1 - alpha) p^gamma log(1 - p) for a background sample: what the prior is for."""
    loss = Focal()
    value = loss(loss.initial_bias(80).expand(10, 80), torch.full((10,), 80)).mean().item()
    assert value == pytest.approx(-80 * 0.75 * 0.01**2 * math.log(0.99), rel=1e-4)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.5])
def test_impossible_prior_is_refused(prior):
    with pytest.raises(ValueError, match=f"prior_prob must lie between 0 and 1, not {prior}"):
        CrossEntropy(prior_prob=prior)


def test_focal_with_alpha_minus_1_balances_nothing_as_in_torchvision(logits):
    logits = logits[:, :K].requires_grad_()
    target = F.one_hot(LABELS, K + 1)[:, :K].float()
    ours, theirs = Focal(alpha=-1)(logits, LABELS).sum(), sigmoid_focal_loss(logits, target, alpha=-1, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(x, logits) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(Focal(alpha=-1, gamma=0)(logits, LABELS), BCE()(logits, LABELS))


@pytest.mark.parametrize("alpha", [-0.25, -2, 1.5, math.nan])
def test_an_alpha_that_weighs_backwards_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha must lie between 0 and 1, or be -1 for no balancing, not {alpha}"):
        Focal(alpha=alpha)


@pytest.mark.parametrize("gamma", [-0.5, math.inf, math.nan])
def test_an_impossible_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma must be a number from 0 on, not {gamma}"):
        Focal(gamma=gamma)


@pytest.mark.parametrize("loss", [CrossEntropy, BCE, Focal])
def test_a_weight_that_trains_backwards_is_refused(loss):
    with pytest.raises(ValueError, match="weight must be a number from 0 on, not -1"):
        loss(weight=-1)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 1.5, 2.0])
def test_focal_has_a_finite_gradient_at_any_logit(gamma):
    values = torch.tensor([0.0, 5, 15, 16.5, 17, 18, 30, 100, 1000])
    logits = torch.cat([values, -values])[:, None].requires_grad_()
    for label in (0, 1):
        labels = torch.full((len(logits),), label)
        (gradient,) = torch.autograd.grad(Focal(gamma=gamma)(logits, labels).sum(), logits)
        exact = logits.detach().double().requires_grad_()
        (expected,) = torch.autograd.grad(Focal(gamma=gamma)(exact, labels).sum(), exact)
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-5)
