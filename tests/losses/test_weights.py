"""The factor on a loss, of every loss that is registered: a new one is held to it by itself."""

import pytest
import torch

from detkit.config import LOSSES
from detkit.losses import BoxLoss, ClassificationLoss, HeatmapLoss

K = 4


def compared(loss):
    """What ``loss`` compares: boxes of which no pair is equal, samples of each class and of background, or a peak."""
    g = torch.Generator().manual_seed(0)
    if isinstance(loss, BoxLoss):
        corner = torch.rand(2, 6, 2, generator=g) * 50
        return torch.cat([corner, corner + torch.rand(2, 6, 2, generator=g) * 60 + 1], dim=2).unbind(0)
    if isinstance(loss, HeatmapLoss):
        return torch.randn(3, generator=g), torch.tensor([1.0, 0.5, 0.0])
    assert isinstance(loss, ClassificationLoss), "what does this new kind of loss compare?"
    torch.manual_seed(1)
    layer = loss.make_layer(8, K)
    layer.initialize()
    return layer(torch.randn(K + 1, 8, generator=g)).detach(), torch.arange(K + 1)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_weight_is_a_factor_on_every_loss(name):
    plain, weighted = LOSSES[name](), LOSSES[name](weight=3.0)
    inputs = compared(plain)
    values = plain(*inputs)
    assert values.sum() > 0
    torch.testing.assert_close(weighted(*inputs), 3 * values)
