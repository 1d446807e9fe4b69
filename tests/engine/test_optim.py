"""Which rate and which decay each parameter gets."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from detkit.config import ConfigError, build, validate
from detkit.config.registry import parameters
from detkit.engine import SGD, AdamW, CustomOptimizer, OptimizerRecipe, ParameterPolicy
from detkit.engine.optim import LrScaling as ScalingOfTheHouse
from detkit.engine.optim import backbone_layers


class Net(nn.Module):
    """A detector with every kind of parameter: shared, frozen, of norms by type and not by name."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("stem", nn.Conv2d(3, 4, 3))
        self.backbone.add_module("first", nn.BatchNorm2d(4))
        self.backbone.add_module("stage1", nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.GroupNorm(2, 4)))
        self.backbone.add_module("stage2", nn.Sequential(nn.Conv2d(4, 4, 1), nn.LayerNorm(4)))
        self.backbone.get_parameter("stage2.0.bias").requires_grad_(False)
        self.head = nn.Linear(4, 2)
        self.twin = nn.Linear(4, 2)
        self.twin.weight = self.head.weight
        self.scale = nn.Parameter(torch.ones(()))


RECIPES: list[Callable[..., OptimizerRecipe]] = [
    SGD,
    AdamW,
    functools.partial(CustomOptimizer, factory=torch.optim.RAdam),
]


def settings(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, tuple[float, float]]:
    """Name -> (lr, weight_decay); fails where a parameter is in two groups."""
    names = {p: name for name, p in net.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in optimizer.param_groups:
        assert group["base_lr"] == group["lr"]
        for p in group["params"]:
            assert names[p] not in found
            found[names[p]] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_norms_and_biases_are_not_decayed(recipe: Callable[..., OptimizerRecipe]) -> None:
    net = Net()
    optimizer = recipe(lr=0.1, weight_decay=0.01)(net, 16)
    found = settings(optimizer, net)
    weights = {"backbone.stem.weight", "backbone.stage1.0.weight", "backbone.stage2.0.weight", "head.weight", "scale"}
    assert found == {
        name: (0.1, 0.01 if name in weights else 0.0) for name, p in net.named_parameters() if p.requires_grad
    }
    assert "backbone.stage2.0.bias" not in found
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_option_of_the_policy(recipe: Callable[..., OptimizerRecipe]) -> None:
    net = Net()
    options = {"weight_decay": 0.01, "norm_decay": 0.002, "bias_decay": None, "bias_lr_factor": 2.0}
    found = settings(recipe(lr=0.1, **options, backbone_lr_factor=0.5, layer_decay=0.1)(net, 16), net)
    expected = {
        "scale": (0.1, 0.01),
        "backbone.stem.weight": (0.1 * 0.5 * 0.001, 0.01),
        "backbone.stem.bias": (0.1 * 0.5 * 0.001 * 2, 0.01),
        "backbone.first.weight": (0.1 * 0.5 * 0.001, 0.002),
        "backbone.first.bias": (0.1 * 0.5 * 0.001, 0.002),
        "backbone.stage1.0.weight": (0.1 * 0.5 * 0.01, 0.01),
        "backbone.stage1.1.weight": (0.1 * 0.5 * 0.01, 0.002),
        "backbone.stage1.1.bias": (0.1 * 0.5 * 0.01, 0.002),
        "backbone.stage2.0.weight": (0.1 * 0.5 * 0.1, 0.01),
        "backbone.stage2.1.weight": (0.1 * 0.5 * 0.1, 0.002),
        "backbone.stage2.1.bias": (0.1 * 0.5 * 0.1, 0.002),
        "head.weight": (0.1, 0.01),
        "head.bias": (0.2, 0.01),
        "twin.bias": (0.2, 0.01),
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name


def test_layers_are_found_through_wrappers_and_norms_join_their_layer() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    wrapper = nn.Module()
    wrapper.features = nn.Sequential(body)
    assert backbone_layers(wrapper) == [[body[0], body[1]], [body[3]]]
    assert backbone_layers(body[0]) == [[body[0]]]


@pytest.mark.parametrize(
    ("scaling", "batch_size", "rate"),
    [("none", 64, 0.02), ("linear", 64, 0.08), ("sqrt", 64, 0.04), ("linear", 4, 0.005)],
)
def test_the_rate_follows_the_batch(
    scaling: str, batch_size: int, rate: float, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net()
    caplog.set_level("INFO", "detkit")
    found = settings(SGD(lr=0.02, lr_scaling=scaling, base_batch_size=16)(net, batch_size), net)  # pyright: ignore
    assert [lr for lr, _ in found.values()] == pytest.approx([rate] * len(found))
    said = f"lr 0.02 x {rate / 0.02:g} = {rate:g} ({scaling} scaling from 16 to {batch_size} images a step)"
    assert (said in caplog.text) == (scaling != "none")


def test_the_optimizers_get_their_own_options() -> None:
    net = Net()
    sgd = SGD(lr=0.1, momentum=0.8, nesterov=True)(net, 1)
    assert isinstance(sgd, torch.optim.SGD)
    assert {(g["momentum"], g["nesterov"]) for g in sgd.param_groups} == {(0.8, True)}
    adam = AdamW(lr=0.1, betas=(0.8, 0.99), eps=1e-6)(net, 1)
    assert isinstance(adam, torch.optim.AdamW)
    assert {(g["betas"], g["eps"]) for g in adam.param_groups} == {((0.8, 0.99), 1e-6)}


def test_any_optimizer_of_torch_from_a_configuration() -> None:
    factory = {"_target_": "torch.optim.RAdam", "_partial_": True, "eps": 1e-5}
    node: dict[str, Any] = {"_target_": "CustomOptimizer", "lr": 0.3, "factory": factory}
    validate(node)
    optimizer = build(node)(Net(), 16)
    assert isinstance(optimizer, torch.optim.RAdam)
    assert optimizer.param_groups[0]["eps"] == 1e-5
    assert optimizer.param_groups[0]["lr"] == 0.3
    with pytest.raises(ConfigError, match=r"^CustomOptimizer: factory must not set 'lr': it comes from"):
        build({**node, "factory": {**factory, "lr": 0.1}})


@dataclass(frozen=True, kw_only=True)
class Rprop(ParameterPolicy, OptimizerRecipe):
    """An optimiser of another module, which knows the policy and none of its types."""

    largest: float = 50.0

    def __call__(self, detector: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        return torch.optim.Rprop(self.groups(detector, batch_size), lr=self.lr, step_sizes=(1e-6, self.largest))


def test_an_optimizer_from_outside_writes_its_own_options_alone() -> None:
    of_sgd, own = parameters(SGD), parameters(Rprop)
    assert set(own) == (set(of_sgd) - {"momentum", "nesterov"}) | {"largest"}
    assert own["lr_scaling"].annotation == ScalingOfTheHouse
    net = Net()
    found = settings(Rprop(lr=0.1, bias_lr_factor=2.0)(net, 16), net)
    assert found["head.bias"] == (0.2, 0.0)


def test_an_optimizer_without_decay_says_so() -> None:
    recipe = CustomOptimizer(factory=torch.optim.Rprop, lr=0.1, weight_decay=0.01)
    words = "Rprop knows no weight decay; set weight_decay, norm_decay and bias_decay to 0"
    with pytest.raises(ValueError, match=f"^{words}$"):
        recipe(Net(), 16)
    assert isinstance(CustomOptimizer(factory=torch.optim.Rprop, lr=0.1)(Net(), 16), torch.optim.Rprop)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "lr must be above 0, not 0.0"),
        ({"lr": float("nan")}, "lr must be above 0, not nan"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more, not -1.0"),
        ({"bias_decay": -0.5}, "bias_decay must be 0 or more, not -0.5"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1, not 1.5"),
        ({"base_batch_size": 0}, "base_batch_size must be 1 or more, not 0"),
        ({"lr_scaling": "linear"}, "lr_scaling='linear' needs base_batch_size: the batch size that lr was chosen for"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov=True needs a momentum above 0, not 0.0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        SGD(**{"lr": 0.1, **options})


def test_betas_are_checked() -> None:
    with pytest.raises(ValueError, match=r"^betas must be in \[0, 1\), not \(0\.9, 1\.0\)$"):
        AdamW(lr=0.1, betas=(0.9, 1.0))


def test_a_policy_for_a_backbone_needs_one() -> None:
    words = "backbone_lr_factor=0.1 and layer_decay=1.0 need a detector with a backbone; Linear has none"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        SGD(lr=0.1, backbone_lr_factor=0.1)(nn.Linear(1, 1), 16)


def test_the_neck_has_a_rate_of_its_own() -> None:
    net = Net()
    net.neck = nn.Linear(2, 2)
    found = settings(SGD(lr=0.1, backbone_lr_factor=0.1, neck_lr_factor=0.5, bias_lr_factor=2.0)(net, 16), net)
    rates = [found[name][0] for name in ("backbone.stem.weight", "neck.weight", "neck.bias", "head.weight")]
    assert rates == pytest.approx([0.01, 0.05, 0.1, 0.1])
    with pytest.raises(ValueError, match=r"^neck_lr_factor=0.5 needs a detector with a neck; Linear has none$"):
        SGD(lr=0.1, neck_lr_factor=0.5)(nn.Linear(1, 1), 16)
    with pytest.raises(ValueError, match=r"^neck_lr_factor must be above 0, not 0$"):
        SGD(lr=0.1, neck_lr_factor=0)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^Linear has no trainable parameters$"):
        SGD(lr=0.1)(nn.Linear(1, 1).requires_grad_(False), 16)
