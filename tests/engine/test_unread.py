"""Parts that no loss reads are told, and several processes do not wait for their gradients."""

import torch
from torch import nn

from detkit.engine.unread import Before, unread_by_all, unread_parameters, without_gradients
from detkit.structures import Losses


class Wide(nn.Module):
    """A detector of which one layer counts only with ``is_used``; it draws a number and keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.frozen, self.unread = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.norm, self.drop, self.is_used = nn.BatchNorm1d(2), nn.Dropout(0.5), False

    def forward(self, images, targets) -> Losses:
        x = self.drop(self.norm(self.frozen(self.read(torch.randn(4, 2)))))
        y = self.unread(x)
        return Losses({"loss": (x + y if self.is_used else x).sum()}, {})


def test_the_layers_that_count_for_nothing():
    detector = Wide()
    names = ["unread.weight", "unread.bias"]
    before = Before(detector)
    values = [value.clone() for value in detector.state_dict().values()]
    state = torch.get_rng_state()
    assert unread_by_all(detector, detector(None, None).total) == names
    assert not torch.equal(torch.get_rng_state(), state)
    before.put_back()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(detector.state_dict().values(), values, strict=True))
    with without_gradients(detector, names):
        assert not any(p.requires_grad for p in detector.unread.parameters())
    assert all(p.requires_grad for p in detector.unread.parameters())
    detector.is_used = True
    assert unread_parameters(detector, detector(None, None).total) == []
