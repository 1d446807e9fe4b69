"""Every logged number in one tidy table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from detkit.config import CALLBACKS
from detkit.engine.callbacks.callback import Callback
from detkit.engine.records import EvaluationRecord, FitResult, FitStart, StepRecord
from detkit.utils.files import atomic_write, named

#: The file in the run folder.
METRICS = "metrics.csv"

HEADER = ("step", "split", "name", "value")


@CALLBACKS
class MetricsCsv(Callback):
    """Writes ``metrics.csv`` into the run folder: step, split (train or val), name, value; one number in a row.

    A score that is not defined on the validation set is nan. A resumed run first takes out the rows after the step it
    goes on from, and a row that a kill has cut off.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def on_fit_start(self, start: FitStart) -> None:
        path = start.run_dir / METRICS
        atomic_write(path, _rows_up_to(path, start.step))
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - open for the whole run

    def on_step_end(self, record: StepRecord) -> None:
        if record.logged:
            self._write(record.step, "train", record.scalars())

    def on_evaluation_end(self, record: EvaluationRecord) -> None:
        self._write(record.step, "val", {name: record.result.value(name) for name in record.result.metrics})

    def on_exception(self, error: BaseException) -> None:
        self._close()

    def on_fit_end(self, result: FitResult) -> None:
        self._close()

    def _write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        assert self._file is not None
        with named(self._file.name):
            csv.writer(self._file, lineterminator="\n").writerows(
                [step, split, name, repr(v)] for name, v in values.items()
            )
            self._file.flush()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # what could not be written has been told; closing tries once more
                file.close()


def _rows_up_to(path: Path, step: int) -> str:
    """The header and those rows of the table at ``path``, if there is one, that belong to the first ``step`` steps."""
    kept = io.StringIO()
    writer = csv.writer(kept, lineterminator="\n")
    writer.writerow(HEADER)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines[1:] if line.endswith("\n")]
    for row in csv.reader(whole):
        if len(row) == len(HEADER) and row[0].isdigit() and int(row[0]) <= step:
            writer.writerow(row)
    return kept.getvalue()
