"""Effective fields: closed forms, the average, and the size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detkit.analysis.receptive_field import effective_fields, effective_size


def test_a_stack_of_means_is_a_bell():
    """n means of 3 pixels have the variance 2n / 3; it falls to 4.55 % at sqrt(2 ln(1 / 0.0455)) deviations."""
    n = 24

    def network(x):
        x = x.sum(1, keepdim=True)
        for _ in range(n):
            x = F.avg_pool2d(x, 3, 1, 1)
        return [x]

    (gradient,) = effective_fields(network, [torch.zeros(1, 3, 81, 91, dtype=torch.float64)])
    assert gradient.shape == (81, 91)
    assert divmod(int(gradient.argmax()), 91) == (40, 45), "the middle cell"
    assert (gradient > 0).sum() == (2 * n + 1) ** 2, "inside the analytic field"
    radius = math.sqrt(2 * n / 3 * 2 * math.log(1 / 0.0455))
    assert effective_size(gradient) == pytest.approx(math.sqrt(math.pi) * radius, rel=0.02)
    assert effective_size(gradient) < (2 * n + 1) / 2


def test_the_size_counts_what_exceeds_the_threshold_of_the_peak():
    gradient = torch.zeros(9, 9, dtype=torch.float64)
    gradient[2, 2] = 2.0
    gradient[3:5, 3:5] = 0.0911
    gradient[6, :4] = 0.0909
    assert effective_size(gradient) == math.sqrt(1 + 4)
    assert effective_size(torch.zeros(4, 4)) == 0.0


def test_gradients_of_either_sign_do_not_cancel_in_the_average():
    inputs = [torch.full((1, 3, 4, 4), sign) for sign in (1.0, -1.0, 3.0)]
    (gradient,) = effective_fields(lambda x: [(x**2).sum(1, keepdim=True)], inputs)
    assert gradient[2, 2] == pytest.approx(3 * 2 * (1 + 1 + 3) / 3), "three colours, 2 |x| each, averaged"
    assert gradient.sum() == gradient[2, 2]


def test_every_level_has_its_own_and_weights_get_no_gradient():
    conv = nn.Conv2d(3, 2, 5, 4, 2)

    def network(x):
        return [conv(x), F.avg_pool2d(conv(x), 2), torch.ones(1, 1, 3, 3)]

    one, two, constant = effective_fields(
        network, [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    )
    assert [(g > 0).sum() for g in (one, two, constant)] == [25, 81, 0]
    assert conv.weight.grad is None
