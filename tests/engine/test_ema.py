"""The moving average, against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.engine.ema import WeightAverage
from tests.engine.stubs import StubDetector, digest


def test_the_average_of_a_few_steps_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(2.0)
        average = WeightAverage(net, decay=0.3)
        expected = 2.0
        for n, value in enumerate((4.0, -1.0, 3.0, 7.0), start=1):
            net.weight.fill_(value)
            average.update(net)
            decay = min(0.3, (1 + n) / (10 + n))
            assert (decay < 0.3) == (n < 3), "the first two steps are in the warm-up"
            expected = decay * expected + (1 - decay) * value
            assert average.detector.get_parameter("weight").item() == pytest.approx(expected)


def test_buffers_are_averaged_and_counters_copied() -> None:
    net = nn.BatchNorm1d(2)
    average = WeightAverage(net, decay=0.5)
    net.running_mean = torch.tensor([1.0, 3.0])
    net.num_batches_tracked = torch.tensor(7)
    average.update(net)
    decay = 2 / 11
    torch.testing.assert_close(average.detector.get_buffer("running_mean"), (1 - decay) * torch.tensor([1.0, 3.0]))
    assert average.detector.get_buffer("num_batches_tracked").item() == 7


def test_what_does_not_change_keeps_its_bits() -> None:
    net = StubDetector()
    average = WeightAverage(net, decay=0.9)
    for _ in range(5):
        average.update(net)
    assert digest(average.detector.state_dict()) == digest(net.state_dict())


def test_the_copy_is_apart_from_the_detector() -> None:
    net = StubDetector().train()
    average = WeightAverage(net, decay=0.9)
    assert net.training
    assert not any(module.training for module in average.detector.modules())
    assert not any(p.requires_grad for p in average.detector.parameters())
    assert all(p.requires_grad for p in net.parameters())
    before = digest(average.detector.state_dict())
    with torch.no_grad():
        net.head.weight.add_(1)
    assert digest(average.detector.state_dict()) == before


def test_its_state_goes_on_with_the_warm_up() -> None:
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    one, other = WeightAverage(net, 0.99), WeightAverage(nn.Linear(2, 2), 0.99)
    for i in range(6):
        with torch.no_grad():
            net.weight.add_(1.0)
        one.update(net)
        if i == 2:
            other.load_state_dict(one.state_dict())
        if i > 2:
            other.update(net)
    assert digest(one.state_dict()) == digest(other.state_dict())
    assert other.num_updates == 6


def test_a_weight_that_two_layers_share_is_taken_in_once() -> None:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    net[1].weight = net[0].weight
    with torch.no_grad():
        net[0].weight.fill_(0.0)
        average = WeightAverage(net, decay=0.5)
        net[0].weight.fill_(1.0)
    average.update(net)
    assert average.detector.get_parameter("0.weight").item() == pytest.approx(1 - 2 / 11)
