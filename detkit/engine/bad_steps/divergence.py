"""The divergence report: the first step that must not be taken ends the run and leaves all that is needed to see why.

A healthy step pays for a few numbers; everything else is done after the failure.
"""

from __future__ import annotations

import re
import statistics
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkit.engine.bad_steps.diagnosis import Rerun, diagnose, run_again
from detkit.engine.bad_steps.finite import (
    BadStepError,
    ExplodingLossError,
    InvalidBatchError,
    NonFiniteGradientError,
    bad_inputs,
    has_odd_pixels,
    is_invalid,
    leaves_range,
)
from detkit.engine.bad_steps.suspicion import InputWatch
from detkit.engine.precision import Precision
from detkit.engine.state.checkpoint import CheckpointError, current_versions
from detkit.engine.state.upgrade import upgrade_config, upgrade_weights
from detkit.structures import Batch, Categories, ImageMeta, Images, Losses, SizeRange, Target
from detkit.structures.affine import Affine
from detkit.structures.columns import columns_of
from detkit.utils import dist
from detkit.utils.commands import command
from detkit.utils.files import atomic_write
from detkit.utils.log import logger
from detkit.utils.step import training_step
from detkit.utils.version import __version__

#: Grows when the meaning of what is stored changes.
FORMAT = 3

#: Steps whose losses are remembered, to tell what is usual.
WINDOW = 50

#: A detector's loss begins at about one. How many times a smaller one it is says more about easy batches, those without
#: an object among them, than about the run.
LEAST_USUAL = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A step that failed.

    ``message``: of the error. ``findings``: the likeliest cause first. ``seen``: what running the step again showed.
    ``terms``: the loss terms of each batch. ``history``: (step, loss, gradient norm, learning rate) of those before.
    ``scale``: of the gradient scaler, None without one. ``batches``: all of the step, ``failing``: the one to look at.
    ``weights``: of the detector before the step; None where the device gave them back no more. ``random``: torch's
    random state before the step. ``class_counts``: (K,) objects of each class in the training data, None where no one
    counted: losses may depend on them.
    """

    step: int
    message: str
    findings: Sequence[str]
    seen: Mapping[str, Any]
    terms: Sequence[Mapping[str, float]]
    lr: Mapping[str, float]
    scale: float | None
    precision: Precision
    history: Sequence[tuple[int, float, float, float]]
    batches: Sequence[Batch]
    failing: int
    weights: Mapping[str, Tensor] | None
    random: Tensor
    categories: Categories
    config: Mapping[str, Any]
    class_counts: Sequence[int] | None = None
    versions: Mapping[str, str] = field(default_factory=current_versions)


def save_bundle(path: str | Path, bundle: Bundle) -> None:
    """Write ``bundle`` to ``path``, whole or not at all."""
    state = {name: getattr(bundle, name) for name in Bundle.__slots__}
    state |= {
        "format": FORMAT,
        "kind": "divergence",
        "categories": bundle.categories.to_dict(),
        "batches": [_plain_batch(batch) for batch in bundle.batches],
        "findings": list(bundle.findings),
        "history": [list(row) for row in bundle.history],
        "class_counts": None if bundle.class_counts is None else list(bundle.class_counts),
    }
    atomic_write(path, lambda temporary: torch.save(state, temporary))


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle onto the CPU; nothing in it can run code.

    Raises:
        CheckpointError: there is no such file, it is no bundle, or one of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive, or cut off")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's second sentence advises to let the file run code
        reason = re.split(r"[.] |\n", str(error))[0]
        raise CheckpointError(f"{path}: damaged or no bundle: {reason}") from error
    if not isinstance(state, dict) or state.get("kind") != "divergence":
        raise CheckpointError(f"{path}: not a divergence report; a failing run writes one as divergence_step....pt")
    if state["format"] == 1:
        weights = None if state["weights"] is None else upgrade_weights(state["weights"])
        state |= {"format": 2, "weights": weights, "config": upgrade_config(state["config"])}
    if state["format"] == 2:
        state |= {"format": 3, "class_counts": None}
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {state['format']}, written by detkit {state['versions']['detkit']}; this is detkit "
            f"{__version__}, which reads formats 1 to {FORMAT}"
        )
    fields = {name: state[name] for name in Bundle.__slots__}
    fields["categories"] = Categories.from_dict(state["categories"])
    fields["batches"] = [_batch_of(plain) for plain in state["batches"]]
    return Bundle(**fields)


def replay(bundle: Bundle, detector: nn.Module, device: torch.device | str = "cpu") -> Rerun:
    """Run the failed step again on ``detector``, which gets the weights of ``bundle``.

    fp16 needs no GPU here: what overflows there overflows on a CPU too.

    Raises:
        ValueError: the bundle has no weights.
    """
    if bundle.weights is None:
        raise ValueError("the bundle has no weights: the device gave them back no more")
    device = torch.device(device)
    detector.load_state_dict(bundle.weights)
    detector.to(device).train()
    torch.set_rng_state(bundle.random)
    batch = bundle.batches[bundle.failing].to(device)
    with training_step(bundle.step):
        return run_again(detector, batch, device, bundle.precision, bundle.scale or 1.0)


class StepWatch:
    """Keeps what a report needs, and writes it when a step fails.

    Args:
        detector: on ``device``, without wrappers.
        run_dir: where bundles go.
        class_counts: see :class:`Bundle`.
        max_loss_ratio: how many times the usual a loss may be: the median of the last 50, or the first one since the
            start or the resume, where that is less, but at least 1. None for any.
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: Precision,
        categories: Categories,
        config: Mapping[str, Any],
        run_dir: Path,
        max_loss_ratio: float | None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        if max_loss_ratio is not None and not max_loss_ratio > 1:
            raise ValueError(f"max_loss_ratio must be above 1, not {max_loss_ratio}")
        self._detector, self._optimizer, self._device = detector, optimizer, device
        self._precision: Precision = precision
        self._categories, self._config, self._run_dir = categories, config, run_dir
        self._max_loss_ratio, self._class_counts = max_loss_ratio, class_counts
        self._inputs = InputWatch(detector)
        self._history: deque[tuple[int, float, float, float]] = deque(maxlen=WINDOW)
        self._first_loss = 0.0
        self._random = torch.get_rng_state()
        self._lr: Mapping[str, float] = {}
        self._step = 0

    def begin(self, step: int, lr: Mapping[str, float]) -> None:
        """Step number ``step`` begins."""
        self._step, self._lr = step, lr
        self._random = torch.get_rng_state()

    def check(self, loss: float, grad_norm: float, batches: Sequence[Batch]) -> None:
        """Take in the numbers of a finite step.

        Raises:
            ExplodingLossError: the loss is more than ``max_loss_ratio`` times what is usual.
        """
        losses = [row[1] for row in self._history]
        limit = self._max_loss_ratio
        if limit is not None and losses and loss > limit * LEAST_USUAL:
            usual = min(statistics.median(losses), self._first_loss)
            if loss > limit * usual:
                raise ExplodingLossError(
                    f"step {self._step}: the loss explodes: {loss:.4g} is more than {limit:g} times the usual "
                    f"{usual:.4g} (trainer.max_loss_ratio)",
                    step=self._step,
                    batches=batches,
                )
        if not self._history:
            self._first_loss = loss
        self._history.append((self._step, loss, grad_norm, max(self._lr.values())))

    def inspect(self, batch: Batch) -> None:
        """Look at ``batch`` as it was loaded.

        Raises:
            InvalidBatchError: there is something in it that some detectors would learn from without a word.
        """
        odd = leaves_range if self._history else has_odd_pixels
        if is_invalid(batch, len(self._categories)) or odd(batch):
            raise self._invalid(batch, "a batch cannot be trained on")
        self._inputs.look(self._step, batch)

    @contextmanager
    def guard(self, batch: Batch) -> Iterator[None]:
        """Let the detector have ``batch``, as it was loaded, inside the block.

        Raises:
            InvalidBatchError: the detector failed, and there is something in the batch that no detector can be trained
                on. An error without such a cause stays what it is.
        """
        try:
            yield
        except (IndexError, RuntimeError, ValueError) as error:
            if not list(bad_inputs(batch, len(self._categories))):
                raise
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise self._invalid(batch, f"the detector failed on a bad batch ({what})") from error

    def _invalid(self, batch: Batch, what: str) -> InvalidBatchError:
        lines = bad_inputs(batch, len(self._categories))
        message = "\n  ".join([f"step {self._step}: {what}", *lines])
        return InvalidBatchError(message, step=self._step, batches=[batch])

    def blame(self, error: Exception, scale: float | None) -> int:
        """How likely this one of several processes, which all fail in the same step, is the one at fault.

        Of a bad gradient, which all have, only that whose own batches give it when they are run again.
        """
        if not isinstance(error, NonFiniteGradientError):
            return 3
        batches = (batch.to(self._device) for batch in error.batches)
        return 1 if all(self._run_again(batch, scale).is_finite for batch in batches) else 2

    def report(self, error: BadStepError, parts: Sequence[tuple[Batch, Losses]], scale: float | None) -> None:
        """Find out what is behind ``error``, write the bundle, and tell where it is.

        Args:
            parts: the step's batches with their losses, as far as they came.
        """
        terms = [{name: term.item() for name, term in losses.terms.items()} for _, losses in parts]
        failing = _failing(error, terms)
        weights = self._weights()
        findings, seen = [str(error)], Rerun()
        if weights is not None:
            findings, seen = self._diagnose(error.batches[failing].to(self._device), scale)
        path = self._run_dir / f"divergence_step{self._step}{_rank_suffix()}.pt"
        bundle = Bundle(
            step=self._step,
            message=str(error),
            findings=findings,
            seen=asdict(seen),
            terms=terms,
            lr=dict(self._lr),
            scale=scale,
            precision=self._precision,
            history=list(self._history),
            batches=[batch.to("cpu") for batch in error.batches],
            failing=failing,
            weights=weights,
            random=self._random,
            categories=self._categories,
            config=self._config,
            class_counts=self._class_counts,
        )
        try:
            save_bundle(path, bundle)
        except OSError as problem:
            logger.error("no divergence report: %s cannot be written: %s", path, problem.strerror or problem)
            return
        error.bundle = path
        for line in describe(bundle):
            logger.error("%s", line)
        logger.error("divergence report: %s; again: %s %s", path, command("replay"), path)

    def _diagnose(self, batch: Batch, scale: float | None) -> tuple[list[str], Rerun]:
        with self._before_the_step():
            return diagnose(
                self._detector,
                self._optimizer,
                batch,
                losses=[row[1] for row in self._history],
                rates=[row[3] for row in self._history],
                num_classes=len(self._categories),
                device=self._device,
                precision=self._precision,
                scale=scale or 1.0,
            )

    def _run_again(self, batch: Batch, scale: float | None) -> Rerun:
        with self._before_the_step():
            return run_again(self._detector, batch, self._device, self._precision, scale or 1.0)

    @contextmanager
    def _before_the_step(self) -> Iterator[None]:
        """Random numbers as before the step, and no other process: the others are not at the same place."""
        after = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            with dist.alone(self._detector):
                yield
        finally:
            torch.set_rng_state(after)

    def _weights(self) -> dict[str, Tensor] | None:
        try:
            return {name: tensor.detach().cpu().clone() for name, tensor in self._detector.state_dict().items()}
        except RuntimeError:  # CUDA gives nothing back after an assertion in a kernel
            return None


def describe(bundle: Bundle) -> list[str]:
    """The report for a reader."""
    lines = [f"likeliest cause: {bundle.findings[0]}" if bundle.findings else "no cause was found"]
    lines += bundle.findings[1:]
    if bundle.history:
        shown = ", ".join(f"{loss:.3g}" for _, loss, _, _ in list(bundle.history)[-8:])
        lines.append(f"losses before step {bundle.step}: {shown}")
    lines.append("learning rate " + ", ".join(f"{name} {value:.3g}" for name, value in bundle.lr.items()))
    if bundle.scale is not None:
        lines.append(f"gradient scale {bundle.scale:g}")
    metas = bundle.batches[bundle.failing].images.meta
    lines.append("images " + ", ".join(f"{meta.image_id} ({meta.file})" for meta in metas))
    return lines


def _failing(error: BadStepError, terms: Sequence[Mapping[str, float]]) -> int:
    """The batch with the worst loss; the one that the detector failed on has none."""
    if len(terms) < len(error.batches):
        return len(terms)
    totals = torch.tensor([sum(t.values()) for t in terms], dtype=torch.float64)
    return int(totals.nan_to_num(nan=torch.inf, posinf=torch.inf).argmax())


def _rank_suffix() -> str:
    return "" if dist.is_main() else f"_rank{dist.rank()}"


#: Fields of a meta that are tuples of numbers with names, which a file holds as lists.
_TUPLES = {"affine": Affine, "valid_range": SizeRange}


def _listed(numbers: tuple[float, ...] | None) -> list[float] | None:
    return None if numbers is None else list(numbers)


def _plain_batch(batch: Batch) -> dict[str, Any]:
    return {
        "pixels": batch.images.pixels.cpu().contiguous(),
        "meta": [asdict(meta) | {name: _listed(getattr(meta, name)) for name in _TUPLES} for meta in batch.images.meta],
        "targets": [[column.cpu() for column in columns_of(target)] for target in batch.targets],
    }


def _batch_of(plain: Mapping[str, Any]) -> Batch:
    metas = tuple(
        ImageMeta(**meta | {name: of(*meta[name]) for name, of in _TUPLES.items() if meta.get(name) is not None})
        for meta in plain["meta"]
    )
    return Batch(Images(plain["pixels"], metas), tuple(Target(*columns) for columns in plain["targets"]))
