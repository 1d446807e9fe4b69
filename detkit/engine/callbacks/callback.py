"""What watches a run."""

from __future__ import annotations

from pathlib import Path

from detkit.engine.records import EvaluationRecord, FitResult, FitStart, StepRecord


class Callback:
    """Sees six events and changes nothing: a run without callbacks ends in the same bits.

    A callback overrides the events that it cares for. Callbacks live in the main process. They get records, never the
    detector. An error in one stops the run.
    """

    def on_fit_start(self, start: FitStart) -> None:
        """The run begins, or has gone on: its first step or evaluation is made."""

    def on_step_end(self, record: StepRecord) -> None:
        """The weights have been updated once, or a scaler skipped that."""

    def on_evaluation_end(self, record: EvaluationRecord) -> None:
        """The detector has been evaluated."""

    def on_save(self, path: Path, step: int) -> None:
        """A checkpoint has been written."""

    def on_exception(self, error: BaseException) -> None:
        """The run stops with ``error``, which may be an Interrupted; on_fit_end does not follow."""

    def on_fit_end(self, result: FitResult) -> None:
        """The run has come to its end."""
