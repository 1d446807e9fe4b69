"""Optimisers, and which learning rate and weight decay each parameter gets."""

# without "from __future__ import annotations": recipes inherit fields, and a plug-in's module need not know their types
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from detkit.config import OPTIMIZERS
from detkit.utils.log import logger

LrScaling = Literal["none", "linear", "sqrt"]

#: Modules whose parameters scale and shift what they have normalised. Found by type, since names differ by library.
NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class OptimizerRecipe(ABC):
    """What an optimiser is built from, once there is a detector: ``recipe(detector, batch_size)``."""

    @abstractmethod
    def __call__(self, detector: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        """The optimiser of every trainable parameter of ``detector``.

        Args:
            batch_size: images in one step, over all processes and accumulated batches; ``lr_scaling`` reads it.

        Raises:
            ValueError: there is nothing to train, or the policy asks for a backbone and there is none.
        """


@dataclass(frozen=True, kw_only=True)
class ParameterPolicy:
    """How the parameters share ``lr`` and ``weight_decay``: the options that all recipes have in common.

    A recipe is a dataclass that inherits these fields and adds its optimiser's own.

    Attributes:
        lr: the learning rate at the peak of the schedule, for ``base_batch_size`` images a step where it is scaled.
        weight_decay: of weights.
        norm_decay: weight decay of normalisation layers, found by module type; None takes ``weight_decay``.
        bias_decay: weight decay of all other biases; None takes ``weight_decay``.
        bias_lr_factor: times ``lr`` for biases outside normalisation layers (Caffe's detectors took 2).
        backbone_lr_factor: times ``lr`` for everything in ``detector.backbone``.
        neck_lr_factor: times ``lr`` for everything in ``detector.neck``; what is left, the head, has ``lr`` itself.
        layer_decay: layer i of the backbone's L layers (stem first) gets ``layer_decay ** (L - i)`` times its rate, as
            in BEiT (Bao et al. 2021, appendix H); 1 is off. A layer is a child of the backbone that has parameters.
        lr_scaling: multiply ``lr`` by batch_size / base_batch_size ("linear": Goyal et al. 2017, section 2.1) or by its
            square root ("sqrt", usual with Adam).
        base_batch_size: the batch size that ``lr`` was chosen for; needed by ``lr_scaling``.
    """

    lr: float
    weight_decay: float = 0.0
    norm_decay: float | None = 0.0
    bias_decay: float | None = 0.0
    bias_lr_factor: float = 1.0
    backbone_lr_factor: float = 1.0
    neck_lr_factor: float = 1.0
    layer_decay: float = 1.0
    lr_scaling: LrScaling = "none"
    base_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "bias_lr_factor", "backbone_lr_factor", "neck_lr_factor"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ValueError(f"{name} must be above 0, not {value}")
        for name in ("weight_decay", "norm_decay", "bias_decay"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, not {value}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, not {self.layer_decay}")
        if self.base_batch_size is not None and self.base_batch_size < 1:
            raise ValueError(f"base_batch_size must be 1 or more, not {self.base_batch_size}")
        if self.lr_scaling != "none" and self.base_batch_size is None:
            raise ValueError(
                f"lr_scaling={self.lr_scaling!r} needs base_batch_size: the batch size that lr was chosen for"
            )

    def groups(self, detector: nn.Module, batch_size: int) -> list[dict[str, Any]]:
        """The parameter groups, each trainable parameter in exactly one, in an order that only the detector decides.

        A group has ``params``, ``lr``, ``weight_decay``, and for the schedule ``base_lr`` (``lr`` at factor 1) and
        ``lr_factor`` (its share of the common rate).
        """
        lr = self.lr * self._scale(batch_size)
        members: dict[tuple[float, float], list[nn.Parameter]] = {}
        rates = self._backbone_rates(detector) | self._neck_rates(detector)
        for module, name, parameter in _trainable(detector):
            kind = _kind(module, name)
            factor = rates.get(parameter, 1.0) * (self.bias_lr_factor if kind == "bias" else 1.0)
            members.setdefault((factor, self._decay(kind)), []).append(parameter)
        if not members:
            raise ValueError(f"{type(detector).__name__} has no trainable parameters")
        return [
            {"params": params, "lr": lr * f, "base_lr": lr * f, "lr_factor": f, "weight_decay": decay}
            for (f, decay), params in members.items()
        ]

    def _scale(self, batch_size: int) -> float:
        if self.lr_scaling == "none" or self.base_batch_size is None:
            return 1.0
        ratio = batch_size / self.base_batch_size
        scale = ratio if self.lr_scaling == "linear" else math.sqrt(ratio)
        logger.info(
            "lr %g x %g = %g (%s scaling from %d to %d images a step)",
            *(self.lr, scale, self.lr * scale, self.lr_scaling, self.base_batch_size, batch_size),
        )
        return scale

    def _decay(self, kind: str) -> float:
        special = {"norm": self.norm_decay, "bias": self.bias_decay}.get(kind)
        return self.weight_decay if special is None else special

    def _neck_rates(self, detector: nn.Module) -> dict[nn.Parameter, float]:
        """The share of ``lr`` of each parameter of the neck; empty when it is 1."""
        if self.neck_lr_factor == 1:
            return {}
        neck = getattr(detector, "neck", None)
        if not isinstance(neck, nn.Module):
            raise ValueError(
                f"neck_lr_factor={self.neck_lr_factor} needs a detector with a neck; {type(detector).__name__} has none"
            )
        return dict.fromkeys(neck.parameters(), self.neck_lr_factor)

    def _backbone_rates(self, detector: nn.Module) -> dict[nn.Parameter, float]:
        """The share of ``lr`` of each parameter of the backbone; empty when all shares are 1."""
        if self.backbone_lr_factor == 1 and self.layer_decay == 1:
            return {}
        backbone = getattr(detector, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise ValueError(
                f"backbone_lr_factor={self.backbone_lr_factor} and layer_decay={self.layer_decay} need a detector with "
                f"a backbone; {type(detector).__name__} has none"
            )
        layers = backbone_layers(backbone)
        depth = {p: i for i, layer in enumerate(layers) for m in layer for p in m.parameters()}
        return {
            p: self.backbone_lr_factor * self.layer_decay ** (len(layers) - depth.get(p, 0))
            for p in backbone.parameters()
        }


def backbone_layers(backbone: nn.Module) -> list[list[nn.Module]]:
    """The layers of ``backbone``, stem first: its children that have parameters, a normalisation with what it follows.

    Wrappers are looked through: as long as a module has one such child and no parameters of its own, its child counts.
    """
    module = backbone
    while True:
        children = [child for child in module.children() if next(child.parameters(), None) is not None]
        if len(children) != 1 or next(module.parameters(recurse=False), None) is not None:
            break
        module = children[0]
    layers: list[list[nn.Module]] = []
    for child in children:
        if layers and isinstance(child, NORM_LAYERS):
            layers[-1].append(child)
        else:
            layers.append([child])
    return layers or [[module]]


def _trainable(detector: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Owner, name in it, and parameter; a shared parameter once, under its first owner."""
    seen: set[nn.Parameter] = set()
    for module in detector.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module, name, parameter


def _kind(module: nn.Module, name: str) -> Literal["norm", "bias", "weight"]:
    if isinstance(module, NORM_LAYERS):
        return "norm"
    return "bias" if name == "bias" else "weight"


@OPTIMIZERS
@dataclass(frozen=True, kw_only=True)
class SGD(ParameterPolicy, OptimizerRecipe):
    """Stochastic gradient descent with momentum. Options beyond torch's: see ParameterPolicy."""

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum <= 0:
            raise ValueError(f"nesterov=True needs a momentum above 0, not {self.momentum}")

    def __call__(self, detector: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        groups = self.groups(detector, batch_size)
        # fused: one pass over each tensor instead of one for every operation, on a CPU too
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=True)


@OPTIMIZERS
@dataclass(frozen=True, kw_only=True)
class AdamW(ParameterPolicy, OptimizerRecipe):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019). Options beyond torch's: see ParameterPolicy."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), not {self.betas}")

    def __call__(self, detector: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        groups = self.groups(detector, batch_size)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@OPTIMIZERS
@dataclass(frozen=True, kw_only=True)
class CustomOptimizer(ParameterPolicy, OptimizerRecipe):
    """Any optimiser of torch: ``factory: {_target_: torch.optim.RAdam, _partial_: true}``; see ParameterPolicy.

    ``lr`` and ``weight_decay`` are given here, the optimiser's other arguments in ``factory``.
    """

    factory: Callable[..., torch.optim.Optimizer]

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.factory.keywords if isinstance(self.factory, functools.partial) else {}
        for name in ("lr", "weight_decay"):
            if name in given:
                raise ValueError(f"factory must not set {name!r}: it comes from beside it")

    def __call__(self, detector: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        groups = self.groups(detector, batch_size)
        optimizer = self.factory(groups, lr=self.lr)
        if "weight_decay" not in optimizer.defaults and any(group["weight_decay"] for group in groups):
            raise ValueError(
                f"{type(optimizer).__name__} knows no weight decay; set weight_decay, norm_decay and bias_decay to 0"
            )
        return optimizer
