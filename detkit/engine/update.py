"""How one update of the weights is made: precision, accumulation, clipping, scaling, averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detkit.engine.bad_steps import finite
from detkit.engine.ema import WeightAverage
from detkit.engine.precision import Precision, autocast
from detkit.engine.state.checkpoint import Checkpoint, CheckpointError
from detkit.engine.state.resume import optimizer_state, restore_optimizer
from detkit.engine.unread import Before, tell_unread, unread_by_all, without_gradients
from detkit.structures import Batch, Losses, Ratio
from detkit.utils import dist
from detkit.utils.log import logger

#: A gradient scaler finds its scale within a few skipped steps; after this many in a row the run itself is broken.
MOST_SKIPPED = 10


class Updater:
    """The detector's weights with what moves them.

    ``optimizer`` is of the parameters of ``detector``, which is on ``device``. A group's ``base_lr``, or else its
    ``lr``, is its learning rate at factor 1. With ``ema_decay`` an average follows the weights. Under "fp16" a gradient
    scaler keeps small gradients from vanishing.
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: Precision,
        accumulate: int,
        clip_norm: float | None,
        ema_decay: float | None,
    ) -> None:
        self.detector, self.optimizer = detector, optimizer
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        self._device = device
        self._precision: Precision = precision
        self._accumulate, self._clip_norm = accumulate, clip_norm
        self._skipped = 0
        self._has_begun = False
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
        self._model: nn.Module = detector
        if dist.world_size() > 1:  # never with static_graph: with dataclasses as outputs the gradients stay local
            self._model = DistributedDataParallel(detector)  # now every process has the main one's weights
        self.average = None if ema_decay is None else WeightAverage(detector, ema_decay)

    @property
    def scale(self) -> float | None:
        """By what the loss is multiplied before its gradient is taken; None without a scaler."""
        return None if self.scaler is None else self.scaler.get_scale()

    def set_learning_rates(self, factor: float) -> dict[str, float]:
        """Give each group ``factor`` times its rate; the rates by name: "lr", and "lr/x0.1" for a tenth of it."""
        rates = {}
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            share = group.get("lr_factor", 1.0)
            rates["lr" if share == 1 else f"lr/x{share:g}"] = group["lr"]
        return rates

    def backward(self, batch: Batch, is_last: bool) -> Losses:
        """Add the gradient of one batch; processes exchange gradients with the last batch of a step alone."""
        model, is_first = self._model, not self._has_begun
        before = Before(self.detector) if is_first and model is not self.detector else None
        with nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with autocast(self._device, self._precision):
                losses = model(batch.images, batch.targets)
            if not is_first or not self._leave_out_unread(losses.total):
                total = losses.total / self._accumulate
                if self.scaler is not None:
                    total = self.scaler.scale(total)
                total.backward()
                return losses
        if before is not None:
            before.put_back()
        return self.backward(batch, is_last)

    def _leave_out_unread(self, loss: Tensor) -> bool:
        """Tell of parameters that no ``loss`` reads; processes would wait for their gradients, so that they are left
        out of the exchange.

        Returns:
            whether the exchange is another one now, and the losses have to be computed by it.
        """
        self._has_begun = True
        unread = unread_by_all(self.detector, loss)
        tell_unread(unread)
        if not (unread and isinstance(self._model, DistributedDataParallel)):
            return False
        self._model._remove_autograd_hooks()
        with without_gradients(self.detector, unread):
            self._model = DistributedDataParallel(self.detector)
        return True

    def gradient_norm(self) -> Tensor:
        """The L2 norm of the gradient, unscaled and before clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])

    def may_apply(self, step: int, parts: Sequence[tuple[Batch, Losses]], loss: float, grad_norm: float) -> bool:
        """Whether the gradient is fit for an update; what a scaler's overflow has spoilt may be skipped.

        Args:
            step: number of this update, from 1.
            parts: the step's batches and their losses.
            loss: their mean.

        Raises:
            NonFiniteError: a loss is not finite, or the gradient without a scaler, or ten times in a row with one.
        """
        batches = [batch for batch, _ in parts]
        if not finite.is_finite(loss):
            raise finite.loss_error(step, parts, self.detector)
        if finite.is_finite(grad_norm):
            self._skipped = 0
            return True
        self._skipped += 1
        if self.scaler is None or self._skipped >= MOST_SKIPPED:
            raise finite.gradient_error(step, batches, self.detector, self._skipped)
        scale = self.scaler.get_scale()
        logger.warning("step %d: update skipped, the gradient overflowed at scale %g", step, scale)
        return False

    def finish(self, grad_norm: Tensor, apply: bool) -> None:
        """Clip and apply the gradient, or only drop it, and let the average and the scaler follow."""
        if apply:
            if self._clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, grad_norm)
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update(self.detector)
        if self.scaler is not None:
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def leave_the_others(self) -> None:
        """From now on a backward pass exchanges no gradients, also where one has been left half-way."""
        if isinstance(self._model, DistributedDataParallel):
            self._model._remove_autograd_hooks()
            self._model = self.detector

    def state(self) -> dict[str, Any]:
        """Optimiser and scaler; weights and average have places of their own in a checkpoint."""
        return {
            "optimizer": optimizer_state(self.optimizer),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "skipped": self._skipped,
        }

    def restore(self, state: Mapping[str, Any], checkpoint: Checkpoint) -> None:
        """Put back ``state`` and the average of ``checkpoint``.

        Raises:
            CheckpointError: another optimiser, or an average or a scaler on one side alone.
        """
        for name, ours, theirs in (
            ("a moving average (trainer.ema_decay)", self.average, checkpoint.average),
            ("a gradient scaler (trainer.precision=fp16)", self.scaler, state["scaler"]),
        ):
            if (ours is None) != (theirs is None):
                with_or_without = "without" if theirs is None else "with"
                raise CheckpointError(f"{checkpoint.source} was trained {with_or_without} {name}")
        restore_optimizer(self.optimizer, state["optimizer"], checkpoint.source)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self._skipped = state["skipped"]


def read_losses(
    parts: list[tuple[Batch, Losses]], norm: Tensor
) -> tuple[dict[str, float], dict[str, float], dict[str, float], float]:
    """What ``parts`` tell, brought from the device at once.

    Returns:
        the loss terms, means over ``parts``; the stats, and what each of them is to be divided by, 1 for means; and the
        gradient's norm.
    """
    num = len(parts)
    terms: dict[str, float] = {}
    stats: dict[str, float] = {}
    wholes: dict[str, float] = {}
    scalars: list[tuple[dict[str, float], str, Tensor, int]] = []
    for _, losses in parts:
        scalars += [(terms, name, term, num) for name, term in losses.terms.items()]
    for name, stat in (item for _, losses in parts for item in losses.stats.items()):
        if isinstance(stat, Ratio):
            scalars += [(stats, name, stat.part, 1), (wholes, name, stat.whole, 1)]
        else:
            scalars.append((stats, name, stat, num))
            wholes[name] = 1.0
    *values, grad_norm = torch.stack([value.detach().float() for *_, value, _ in scalars] + [norm.float()]).tolist()
    for (into, name, _, divisor), value in zip(scalars, values, strict=True):
        into[name] = into.get(name, 0.0) + value / divisor
    return terms, stats, {name: wholes[name] for name in stats}, grad_norm
