"""What a step died of: run it once more, watch every layer, and look at all that moves the weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detkit.engine.bad_steps.finite import culprits, is_finite
from detkit.engine.precision import Precision, autocast
from detkit.models.compiled import as_it_stands
from detkit.structures import Batch

#: A healthy update changes a weight by a thousandth of its size, Adam's first ones by a few hundredths.
LARGE_UPDATE = 0.1

#: Where the last loss before the failure is so many times the least, the run did not fail all of a sudden.
GROWTH = 10.0

#: No layer of a network that works has such a weight; a flipped bit in the exponent of a float gives one.
LARGE_WEIGHT = 1e6

#: States of torch's optimisers whose root is taken.
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")


@dataclass(slots=True)
class Rerun:
    """What was seen when a step was run again.

    ``output``: the first layer, in the order of the forward pass, whose output is not finite. ``gradient``: the first,
    in the order of the backward pass, at whose output the gradient is not finite, or else the first such parameter.
    ``terms``: the loss terms, empty where the detector failed with ``error``.
    """

    output: str | None = None
    gradient: str | None = None
    terms: Mapping[str, float] | None = None
    error: str | None = None

    @property
    def loss(self) -> float:
        """The sum of the terms; inf where it is not finite, or the detector failed."""
        total = math.inf if self.terms is None else sum(self.terms.values())
        return total if is_finite(total) else math.inf

    @property
    def is_finite(self) -> bool:
        """Whether every loss is, and no layer's gradient is not."""
        return self.terms is not None and all(map(is_finite, self.terms.values())) and self.gradient is None


def run_again(
    detector: nn.Module, batch: Batch, device: torch.device, precision: Precision, scale: float = 1.0
) -> Rerun:
    """Forward and backward on ``batch``, every layer watched; gradients are gone afterwards, buffers as before.

    Args:
        scale: of the gradient scaler.
    """
    seen = Rerun()
    detector.zero_grad(set_to_none=True)
    # a compiled graph knows nothing of the watches on its layers
    with _watched(detector, seen), _buffers_kept(detector), as_it_stands(detector):
        try:
            with autocast(device, precision):
                losses = detector(batch.images, batch.targets)
            seen.terms = {name: term.item() for name, term in losses.terms.items()}
            if all(map(is_finite, seen.terms.values())):
                (losses.total * scale).backward()
        except Exception as error:  # whatever it is, it must not take the place of what the run died of
            seen.error = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if seen.gradient is None and seen.terms is not None:
        gradients = ((name, p.grad) for name, p in detector.named_parameters() if p.grad is not None)
        seen.gradient = next((name for name, gradient in gradients if not gradient.isfinite().all()), None)
    detector.zero_grad(set_to_none=True)
    return seen


def diagnose(
    detector: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    batch: Batch,
    *,
    losses: Sequence[float] = (),
    rates: Sequence[float] = (),
    num_classes: int,
    device: torch.device,
    precision: Precision,
    scale: float = 1.0,
) -> tuple[list[str], Rerun]:
    """The findings, the likeliest cause first, and what was seen when ``batch`` was run again.

    Args:
        optimizer: None where it is not at hand any more.
        losses: of the steps before.
        rates: the learning rates of the steps before.
        scale: of the gradient scaler.
    """
    findings = [] if optimizer is None else _bad_rates(optimizer, rates) + _bad_states(detector, optimizer)
    findings += culprits(detector, [batch], num_classes)
    again = partial(run_again, detector, batch, device, precision, scale)
    seen = again()
    if not findings and precision != "fp32" and not seen.is_finite:
        exact = run_again(detector, batch, device, "fp32")
        if exact.is_finite:
            total = sum((exact.terms or {}).values())
            findings.append(
                f"{precision} overflows: in float32 the same step has a finite gradient and the loss {total:.4g}; take "
                "trainer.precision=bf16 or fp32"
            )
    if not findings and optimizer is not None:
        findings += (
            _weight_decay(optimizer)
            or _last_update(optimizer, losses, rates, seen, again)
            or _learning_rate(optimizer, losses)
        )
    if not findings:
        findings += _large_weights(detector) or _blank_images(batch)
    return findings + _layers(seen), seen


def update_ratio(optimizer: torch.optim.Optimizer) -> float | None:
    """The last update's size, as a share of the weight's own: the median over the weights (biases and scales left out).

    Of SGD with momentum and of the Adam family; None for others, and before the first update.
    """
    ratios = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            direction = _direction(optimizer.state.get(p, {}), group) if p.ndim > 1 else None
            if direction is not None:
                size = float(p.detach().norm())
                ratio = group["lr"] * float(direction.norm()) / size if size else float("inf")
                ratios.append(ratio if is_finite(ratio) else float("inf"))
    return statistics.median(ratios) if ratios else None


def _direction(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """What the learning rate was multiplied by."""
    if state.get("momentum_buffer") is not None:
        return state["momentum_buffer"]
    if "exp_avg" not in state or "exp_avg_sq" not in state:
        return None
    step, (beta1, beta2) = float(state["step"]), group["betas"]
    mean, square = state["exp_avg"] / (1 - beta1**step), state["exp_avg_sq"] / (1 - beta2**step)
    return mean / (square.sqrt() + group["eps"])


def _learning_rate(optimizer: torch.optim.Optimizer, losses: Sequence[float]) -> list[str]:
    rates = ", ".join(f"{rate:g}" for rate in sorted({group["lr"] for group in optimizer.param_groups}))
    ratio = update_ratio(optimizer)
    if losses and losses[-1] > GROWTH * min(losses) > 0:
        return [
            f"the learning rate {rates} is too high: the loss grew from {min(losses):.3g} to {losses[-1]:.3g} first"
        ]
    if ratio is None or ratio < LARGE_UPDATE:
        return []
    return [
        f"the learning rate {rates} is too high: the last update changed half of the weights by {ratio:.2g} times "
        f"their own size or more (healthy is below {LARGE_UPDATE:g})"
    ]


def _last_update(
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
    rates: Sequence[float],
    seen: Rerun,
    again: Callable[[], Rerun],
) -> list[str]:
    """Whether the last update has made the loss explode: after a tenth of it the same batch has a usual one.

    A batch that is at fault itself has its loss after any update.
    """
    if not losses or seen.error is not None or not seen.loss > (limit := GROWTH * statistics.median(losses)) > 0:
        return []
    with _shortened(optimizer, rates[-1]) as is_known:
        shorter = again().loss if is_known else math.inf
    if shorter > limit:
        return []
    return [
        f"the learning rate {rates[-1]:g} is too high: the loss is {seen.loss:.4g} after the last update, and would be "
        f"{shorter:.4g} after a tenth of it"
    ]


@contextmanager
def _shortened(optimizer: torch.optim.Optimizer, rate: float) -> Iterator[bool]:
    """The weights as after a tenth of the last update, inside the block; False where that update is not known.

    Args:
        rate: the highest of the last update; those of the groups have changed since, all by the same factor.
    """
    now = max(group["lr"] for group in optimizer.param_groups)
    updates = [
        (p, group["lr"] / now * rate * direction)
        for group in optimizer.param_groups
        for p in group["params"]
        if now > 0 and (direction := _direction(optimizer.state.get(p, {}), group)) is not None
    ]
    before = [p.detach().clone() for p, _ in updates]
    with torch.no_grad():
        for p, update in updates:
            p.add_(update, alpha=0.9)
    try:
        yield bool(updates)
    finally:
        with torch.no_grad():
            for (p, _), value in zip(updates, before, strict=True):
                p.copy_(value)


def _bad_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> list[str]:
    """Learning rates, of this step or of those before, that no schedule should give."""
    now = [float(group["lr"]) for group in optimizer.param_groups]
    bad = [rate for rate in [*now, *reversed(rates)] if not (is_finite(rate) and rate >= 0)]
    return [f"the learning rate is {bad[0]:g}: it must be finite and not negative"] if bad else []


def _weight_decay(optimizer: torch.optim.Optimizer) -> list[str]:
    """Decay that takes much of a weight in one step, or would turn it round."""
    shares = [(group["lr"] * group.get("weight_decay", 0.0), group) for group in optimizer.param_groups]
    share, group = max(shares, key=lambda each: each[0])
    if share < LARGE_UPDATE:
        return []
    return [
        f"the weight decay {group['weight_decay']:g} is too high: at the learning rate {group['lr']:g} it takes "
        f"{share:.2g} of each weight in a step"
    ]


def _blank_images(batch: Batch) -> list[str]:
    flat = [m for p, m in zip(batch.images.pixels, batch.images.meta, strict=True) if p.min() == p.max()]
    return [f"image {meta.image_id} ({meta.file}) is of one colour" for meta in flat]


def _bad_states(detector: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    names: dict[Tensor, str] = {p: name for name, p in detector.named_parameters()}
    bad = []
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                of = f"the optimiser's {key} of {names.get(p, 'a parameter')}"
                if not value.isfinite().all():
                    bad.append(f"{of} is not finite")
                elif key in _SQUARES and (value < 0).any():
                    bad.append(f"{of} is negative, though it is a mean of squares")
    return bad[:1] + ([f"and {len(bad) - 1} more of its states"] if len(bad) > 1 else [])


def _large_weights(detector: nn.Module) -> list[str]:
    tensors = ((name, p.detach().abs()) for name, p in detector.named_parameters() if p.numel())
    return [f"{name} holds values up to {float(t.max()):.3g}" for name, t in tensors if t.max() > LARGE_WEIGHT]


def _layers(seen: Rerun) -> list[str]:
    if seen.error is not None:
        return [f"the detector fails with {seen.error}"]
    if seen.output is not None:
        return [f"the first layer whose output is not finite: {seen.output}"]
    if seen.terms is not None and not all(map(is_finite, seen.terms.values())):
        return ["every layer's output is finite: the loss itself is not"]
    if seen.gradient is not None:
        return [f"the first place of the backward pass where the gradient is not finite: {seen.gradient}"]
    return []


@contextmanager
def _watched(detector: nn.Module, seen: Rerun) -> Iterator[None]:
    def on_gradient(name: str, gradient: Tensor) -> None:
        if seen.gradient is None and not gradient.isfinite().all():
            seen.gradient = f"the output of {name}"

    def on_output(name: str, _: nn.Module, __: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if seen.output is None and not tensor.isfinite().all():
                seen.output = name
            if tensor.requires_grad:
                tensor.register_hook(partial(on_gradient, name))

    with ExitStack() as stack:
        for name, module in detector.named_modules():
            if name:
                stack.callback(module.register_forward_hook(partial(on_output, name)).remove)
        yield


@contextmanager
def _buffers_kept(detector: nn.Module) -> Iterator[None]:
    before = {name: buffer.clone() for name, buffer in detector.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in detector.named_buffers():
                buffer.copy_(before[name])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
