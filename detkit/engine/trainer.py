"""The training loop, as plain code."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkit.config import TRAINERS
from detkit.engine.arguments import check_can_be_kept, check_counts
from detkit.engine.bad_steps.divergence import StepWatch
from detkit.engine.bad_steps.finite import BadStepError
from detkit.engine.batches import EvalBatches, TrainBatches
from detkit.engine.callbacks.callback import Callback
from detkit.engine.evaluation import EvaluationStopped, evaluate, to_device
from detkit.engine.interrupt import Interrupted, StopRequest
from detkit.engine.monitor import check_evaluation, check_monitored_term, is_lower_better
from detkit.engine.precision import Precision, check_precision
from detkit.engine.progress import Progress
from detkit.engine.records import EvaluationRecord, FitResult, FitStart, StepRecord
from detkit.engine.schedule import Schedule
from detkit.engine.state.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    Checkpoint,
    CheckpointError,
    check_categories,
    load_weights,
    save_checkpoint,
)
from detkit.engine.state.resume import process_state, restore_process, warn_of_versions
from detkit.engine.update import Updater, read_losses
from detkit.evaluation import Evaluator
from detkit.models.compiled import compile_networks
from detkit.structures import Batch, Categories, Losses
from detkit.utils import dist
from detkit.utils.log import logger
from detkit.utils.step import training_step


@TRAINERS
class Trainer:
    """Trains a detector for a number of steps, evaluates it and keeps checkpoints.

    A step is one optimiser update. The arguments from ``detector`` on come at run time, not from YAML.

    Args:
        steps: length of the run.
        precision: "bf16" and "fp16" run backbone, neck and raw head under autocast; "fp16" is for CUDA alone.
        accumulate: batches in one step.
        clip_norm: largest L2 norm of the gradient.
        ema_decay: keep a moving average of the weights (see WeightAverage), which is then what is evaluated.
        channels_last: keep weights and pixels in that memory format.
        compile: train on graphs of ``torch.compile``, one for each padded size of a batch (see compile_networks); meant
            for GPUs, since on a CPU it is slower (docs/performance.md).
        eval_every: steps from one evaluation to the next; null: at the end alone.
        save_every: steps from one ``last.pt`` to the next; it is also saved before and after each evaluation and at the
            end.
        log_every: steps from one logged step to the next.
        val_loss: compute the losses too when evaluating, by a second pass over the images.
        monitor: the metric of which the best evaluation gives ``best.pt``: a score (higher is better) or "val_loss" or
            one of its terms, "val_loss/NAME" (lower is better, as of the landmarks' NME).
        max_loss_ratio: a loss of more than so many times the usual (the median of the last 50, or the run's first where
            that is less) has exploded and ends the run, as one that is not finite does; null lets it be.
        patience: stop after this many evaluations without a better one.
        optimizer: of the parameters of ``detector``. A group's ``base_lr``, or else ``lr``, is its rate at factor 1.
        val_loader: validation images; None for a run without evaluations.
        evaluator: scores their detections; None where only losses are wanted.
        run_dir: the folder of the checkpoints; must exist.
        callbacks: watchers by name; called in this order.
        config: kept in the checkpoints; plain values only.
        class_counts: (K,) objects of each class in the training data, which ``detector`` was built with; kept in the
            report of a bad step.
    """

    runtime_arguments = (
        *("detector", "optimizer", "schedule", "train_loader", "val_loader", "evaluator"),
        *("categories", "class_counts", "run_dir", "device", "callbacks", "config"),
    )

    def __init__(
        self,
        *,
        steps: int,
        precision: Precision = "fp32",
        accumulate: int = 1,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        channels_last: bool = False,
        compile: bool = False,
        eval_every: int | None = None,
        save_every: int | None = 500,
        log_every: int = 20,
        val_loss: bool = True,
        monitor: str = "AP",
        max_loss_ratio: float | None = 100.0,
        patience: int | None = None,
        detector: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        train_loader: TrainBatches,
        categories: Categories,
        run_dir: str | Path,
        val_loader: EvalBatches | None = None,
        evaluator: Evaluator | None = None,
        device: torch.device | str = "cpu",
        callbacks: Mapping[str, Callback] | None = None,
        config: Mapping[str, Any] | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        self.steps, self.accumulate = steps, accumulate
        self.precision: Precision = precision
        self.eval_every, self.save_every, self.log_every = eval_every, save_every, log_every
        self.val_loss, self.monitor, self.patience = val_loss, monitor, patience
        self.channels_last, self.device = channels_last, torch.device(device)
        self.schedule, self.categories, self.run_dir = schedule, categories, Path(run_dir)
        self.train_loader, self.val_loader, self.evaluator = train_loader, val_loader, evaluator
        self.callbacks = dict(callbacks or {}) if dist.is_main() else {}
        self.config = dict(config or {})
        self._check_arguments(clip_norm)
        self.detector = detector.to(self.device)
        if channels_last:
            self.detector = detector.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if compile:
            compile_networks(self.detector, self.device)
        self.updater = Updater(
            detector=self.detector,
            optimizer=optimizer,
            device=self.device,
            precision=precision,
            accumulate=accumulate,
            clip_norm=clip_norm,
            ema_decay=ema_decay,
        )
        self.watch = StepWatch(
            detector=self.detector,
            optimizer=optimizer,
            device=self.device,
            precision=precision,
            categories=categories,
            config=self.config,
            run_dir=self.run_dir,
            max_loss_ratio=max_loss_ratio,
            class_counts=class_counts,
        )
        self.progress = Progress()
        #: By what the monitored values are measured, plain values; who builds the trainer may add to it before
        #: :meth:`restore`, which compares values with the best one so far only where all of it is as it was.
        self.measure: dict[str, Any] = {"trainer.monitor": monitor}
        self.metrics: dict[str, float] = {}
        self._saved_step = 0
        self._opening: Callable[[], None] | None = None

    def fit(self, begin: Callable[[], object] = lambda: None) -> FitResult:
        """Train to the last step, or until patience ends, from where :meth:`restore` left off.

        Args:
            begin: called once, before the callbacks hear of the run and before anything is written. A run that goes on
                begins when its first step or evaluation is made, for these may show that it cannot: callbacks then hear
                nothing, and its folder is as it was.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the step was finished and ``last.pt`` saved.
            BadStepError: a loss or gradient is not finite, a loss explodes, or a batch is invalid; no weight has taken
                it in, and a divergence report lies in the run folder.
            FailedElsewhereError: that, or a batch that cannot be loaded, is in another process.
            CheckpointError: a checkpoint could not be written.
        """
        start = FitStart(self.progress.step, self.steps, self.run_dir, self.categories)

        def opening() -> None:
            begin()
            self._tell("on_fit_start", start)

        self._opening = opening
        try:
            if start.step == 0:
                self._begin()
            with StopRequest() as stop:
                self._run(stop)
        except BaseException as error:
            logger.debug("the run ends with %s: %s", type(error).__name__, error)
            if self._opening is None:
                self._call("on_exception", error)
            raise
        finally:
            self._opening = None
        progress = self.progress
        result = FitResult(
            progress.step, dict(self.metrics), progress.best, progress.best_step, self._out_of_patience()
        )
        self._tell("on_fit_end", result)
        return result

    def _begin(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening()

    def _run(self, stop: StopRequest) -> None:
        batches = self.train_loader.iterate(start=self.progress.batches_seen)
        self.detector.train()
        try:
            while True:
                self._leave_if_asked(stop)
                if self._save_is_due():
                    self.save()  # before the evaluation, which may fail: no step is lost with it
                if self._evaluation_is_due():
                    if self.evaluate(lambda: bool(stop)) is None:
                        continue  # a signal came during the evaluation, which is done again after the resume
                    self.save()
                if self._is_finished():
                    self._begin()
                    return
                with training_step(self.progress.step + 1):
                    record = self.train_step(batches)
                if self.val_loader is not None:
                    check_monitored_term(self.monitor, record.terms)
                self._begin()
                self._tell("on_step_end", record)
        finally:
            if isinstance(batches, Generator):
                batches.close()  # its workers end now, not when an exception's traceback lets go of it

    def train_step(self, batches: Iterator[Batch]) -> StepRecord:
        """One update from the next ``accumulate`` of ``batches``.

        Raises:
            BadStepError: see :meth:`fit`; the weights are as they were.
            FailedElsewhereError: another process has such a step.
        """
        start, waited = time.perf_counter(), 0.0
        step = self.progress.step + 1
        lr = self.updater.set_learning_rates(self.schedule.factor(step - 1, self.steps))
        self.watch.begin(step, lr)
        parts: list[tuple[Batch, Losses]] = []
        try:
            for i in range(self.accumulate):
                with dist.together(self.device):
                    asked = time.perf_counter()
                    loaded = next(batches)
                    waited += time.perf_counter() - asked
                    self.watch.inspect(loaded)
                batch = to_device(loaded, self.device, self.channels_last)
                with self.watch.guard(loaded):
                    parts.append((batch, self.updater.backward(batch, is_last=i == self.accumulate - 1)))
            grad_norm = self.updater.gradient_norm()
            terms, stats, wholes, norm = read_losses(parts, grad_norm)  # the step's one wait for the device
            loss = sum(terms.values())
            with dist.together(self.device, lambda error: self.watch.blame(error, self.updater.scale)):
                applied = self.updater.may_apply(step, parts, loss, norm)
                self.watch.check(loss, norm, [batch for batch, _ in parts])
        except BadStepError as error:
            self.updater.leave_the_others()
            self.watch.report(error, parts, self.updater.scale)
            raise
        self.updater.finish(grad_norm, applied)
        self.progress.step = step
        self.progress.batches_seen += self.accumulate
        logged = step % self.log_every == 0 or step in (1, self.steps)
        if logged:
            terms, stats, wholes = (dist.mean_of_numbers(numbers, self.device) for numbers in (terms, stats, wholes))
        return StepRecord(
            step=step,
            loss=sum(terms.values()),
            terms=terms,
            stats={name: part / wholes[name] for name, part in stats.items() if wholes[name]},
            lr=lr,
            grad_norm=norm,
            applied=applied,
            logged=logged,
            num_images=sum(len(batch) for batch, _ in parts) * dist.world_size(),
            data_seconds=waited,
            compute_seconds=time.perf_counter() - start - waited,
        )

    def evaluate(self, should_stop: Callable[[], bool] = lambda: False) -> EvaluationRecord | None:
        """Evaluate the detector, or its average, on the validation set; a new best goes to ``best.pt``.

        Returns:
            What was found, or None where ``should_stop`` ended the evaluation: nothing has changed then.

        Raises:
            ValueError: the monitored metric is not among those that were computed.
        """
        assert self.val_loader is not None
        detector = self._evaluated_detector()
        dist.broadcast_buffers(detector)  # each process has running statistics of its own batches
        try:
            result = evaluate(
                detector,
                self.val_loader,
                self.evaluator,
                device=self.device,
                precision=self.precision,
                channels_last=self.channels_last,
                val_loss=self.val_loss,
                should_stop=should_stop if dist.world_size() == 1 else lambda: False,  # all must do the same
            )
        except EvaluationStopped:
            return None
        try:
            value = result.value(self.monitor)
        except ValueError as error:
            raise ValueError(f"trainer.monitor: {error}") from None
        self._begin()
        self.metrics = result.metrics
        is_best = self.progress.judge(value, is_lower_better=is_lower_better(self.monitor))
        record = EvaluationRecord(self.progress.step, result, is_best)
        logger.info("step %d: %s", self.progress.step, record.in_words(self.monitor))
        if is_best:
            self._write(BEST, self._weights())
        self._tell("on_evaluation_end", record)
        return record

    def save(self) -> None:
        """Write the state of the run to ``last.pt``; the one before it stays as ``previous.pt``.

        Raises:
            CheckpointError: it could not be written; the old files are intact.
        """
        checkpoint = Checkpoint(
            step=self.progress.step,
            detector=self.detector.state_dict(),
            average=None if self.updater.average is None else self.updater.average.state_dict(),
            categories=self.categories,
            config=self.config,
            metrics=self.metrics,
            training={
                **self.updater.state(),
                "progress": asdict(self.progress),
                "process": process_state(),
                "measure": self.measure,
            },
        )
        again = self._saved_step == self.progress.step  # after an evaluation: previous.pt stays an earlier step's
        self._write(LAST, checkpoint, keep=None if again else PREVIOUS)
        self._saved_step = self.progress.step

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from ``checkpoint``: :meth:`fit` then ends in the bits of a run that was never stopped.

        Where ``measure`` is another one than there, the best value and its step are forgotten, and what the checkpoint
        was evaluated by does not count.

        Raises:
            CheckpointError: it is of another model, other classes or another optimiser, or has weights alone.
        """
        if checkpoint.training is None:
            raise CheckpointError(f"{checkpoint.source} has weights alone; a run goes on from {LAST}")
        check_categories(checkpoint, self.categories)
        load_weights(self.detector, checkpoint.detector, checkpoint.source)
        self.updater.restore(checkpoint.training, checkpoint)
        restore_process(checkpoint.training["process"])
        warn_of_versions(checkpoint)
        self.progress = Progress(**checkpoint.training["progress"])
        self.metrics = dict(checkpoint.metrics)
        self._saved_step = self.progress.step
        self._forget_other_measure(checkpoint.training.get("measure", self.measure), checkpoint.source)
        logger.info("going on from %s after step %d of %d", checkpoint.source, self.progress.step, self.steps)

    def _forget_other_measure(self, before: Mapping[str, Any], source: str) -> None:
        changed = [key for key in {**self.measure, **before} if before.get(key) != self.measure.get(key)]
        if not changed or not self.progress.evaluated:
            return
        if self.progress.best is not None:
            named = changed[:1] if "trainer.monitor" in changed else changed[:3]  # the metric says enough
            logger.warning(
                "%s: its best value, %.4f at step %d, was measured by another %s: the best starts anew, and the next "
                "evaluation takes the place of %s", source, self.progress.best, self.progress.best_step,
                ", ".join(named), BEST,
            )  # fmt: skip
        self.progress.forget_best()

    def _evaluated_detector(self) -> nn.Module:
        return self.detector if self.updater.average is None else self.updater.average.detector

    def _weights(self) -> Checkpoint:
        """The evaluated weights, without what only training needs."""
        return Checkpoint(
            step=self.progress.step,
            detector=self._evaluated_detector().state_dict(),
            categories=self.categories,
            config=self.config,
            metrics=self.metrics,
        )

    def _write(self, name: str, checkpoint: Checkpoint, keep: str | None = None) -> None:
        with dist.together(self.device):
            if dist.is_main():
                path = self.run_dir / name
                save_checkpoint(path, checkpoint, keep=None if keep is None else self.run_dir / keep)
                self._call("on_save", path, checkpoint.step)

    def _leave_if_asked(self, stop: StopRequest) -> None:
        if dist.any_process(bool(stop), self.device):
            if self._saved_step != self.progress.step:
                self.save()
            logger.warning("stopped after step %d of %d; resume goes on from there", self.progress.step, self.steps)
            raise Interrupted(stop.signum or signal.SIGTERM)

    def _is_finished(self) -> bool:
        return self.progress.step >= self.steps or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return self.patience is not None and self.progress.without_gain >= self.patience

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        if self.val_loader is None or step == 0 or self.progress.evaluated == step:
            return False
        return self._is_finished() or (self.eval_every is not None and step % self.eval_every == 0)

    def _save_is_due(self) -> bool:
        step = self.progress.step
        if self._saved_step == step:
            return False
        by_number = self.save_every is not None and step % self.save_every == 0
        return by_number or self._is_finished() or self._evaluation_is_due()

    def _tell(self, event: str, *what: Any) -> None:
        """Call the callbacks, which the main process alone has: where one fails, all processes end."""
        with dist.together(self.device):
            self._call(event, *what)

    def _call(self, event: str, *what: Any) -> None:
        for callback in self.callbacks.values():
            getattr(callback, event)(*what)

    def _check_arguments(self, clip_norm: float | None) -> None:
        counts = ("steps", "accumulate", "log_every", "eval_every", "save_every", "patience")
        check_counts({name: getattr(self, name) for name in counts})
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, not {clip_norm}")
        check_precision(self.precision, self.device)
        check_can_be_kept(self.config, self.run_dir)
        only_with_evaluations = {"eval_every": self.eval_every, "patience": self.patience}
        check_evaluation(
            self.val_loader is not None, only_with_evaluations, self.monitor, self.evaluator, self.val_loss
        )
