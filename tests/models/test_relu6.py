"""ReLU6 that keeps one copy gives the numbers of torch's."""

from __future__ import annotations

import torch
from torch import nn

from detkit.models.layers import use_lean_relu6
from detkit.models.layers.relu6 import LeanReLU6


def outcome(activation: nn.Module, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = values.clone().requires_grad_()
    result = activation(x * 1)
    (gradient,) = torch.autograd.grad((result * torch.arange(1.0, 1 + values.numel())).sum(), x)
    return result, gradient


def test_results_and_gradients_are_torchs_at_the_corners_too() -> None:
    tiny = torch.finfo(torch.float32).tiny
    values = torch.tensor([-1.0, -0.0, 0.0, tiny, 3.0, 6.0 - 4e-7, 6.0, 7.0, float("inf"), -float("inf")])
    ours, theirs = (outcome(layer, values) for layer in (LeanReLU6(inplace=True), nn.ReLU6(inplace=True)))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[1].tolist() == [0, 0, 0, 4, 5, 6, 0, 0, 0, 0]


def test_one_that_is_not_in_place_leaves_its_input() -> None:
    x = torch.tensor([-1.0, 3.0, 7.0], requires_grad=True) * 1
    result = LeanReLU6()(x)
    assert (x.tolist(), result.tolist()) == ([-1, 3, 7], [0, 3, 6])


def test_nothing_is_copied_for_the_gradients() -> None:
    x = torch.randn(5, requires_grad=True) * 1
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        result = LeanReLU6(inplace=True)(x)
    assert [t.data_ptr() for t in kept] == [result.data_ptr()] == [x.data_ptr()]


def test_every_one_in_place_is_replaced_and_no_name_changes() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU6(inplace=True), nn.Sequential(nn.ReLU6(inplace=True), nn.ReLU6())
    )
    names = list(network.state_dict())
    use_lean_relu6(network)
    assert [type(m) for m in network.modules() if isinstance(m, nn.ReLU6)] == [LeanReLU6, LeanReLU6, nn.ReLU6]
    assert list(network.state_dict()) == names
