"""Every logged number in one tidy table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from detkit.config import CALLBACKS, ConfigError
from detkit.engine.callbacks.callback import Callback
from detkit.engine.records import EvaluationRecord, FitResult, FitStart, StepRecord
from detkit.utils.files import atomic_write, named
from detkit.utils.log import logger

#: The file in the run folder.
METRICS = "metrics.csv"

HEADER = ("step", "split", "name", "value")

_SPLITS = ("train", "val")

#: In the place of bytes that are not UTF-8.
_NOT_A_LETTER = "\N{REPLACEMENT CHARACTER}"


class LoggedNumber(NamedTuple):
    """A row of the table; ``text``: the value as it stands there, to its last digit."""

    step: int
    split: str
    name: str
    text: str

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text)


@CALLBACKS
class MetricsCsv(Callback):
    """Writes ``metrics.csv`` into the run folder: step, split (train or val), name, value; one number in a row.

    A score that is not defined on the validation set is nan. A resumed run first takes out the rows after the step it
    goes on from, and what :func:`read_metrics` leaves out. A file that is no such table does not stop it.
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


def read_metrics(path: str | Path) -> list[LoggedNumber]:
    """The rows of the table at ``path``; none where there is no file.

    What a kill, a full disk or a damaged disk has left is no row: each is a whole line of a step, a split, a name and a
    number. A row tells all of itself, so that the head line may be missing too.

    Raises:
        ConfigError: the file holds something, but neither a head line nor a row.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, cut_off = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [row for row in map(_row, lines) if row is not None]
    if not rows and ",".join(HEADER) not in lines and (any(lines) or cut_off):
        raise ConfigError(f"{path}: not the table of logged numbers that a run writes")
    return rows


def _row(line: str) -> LoggedNumber | None:
    """What ``line`` tells; None where it is no row."""
    try:
        step, split, name, value = next(csv.reader([line]))
        float(value)
    except (StopIteration, ValueError, csv.Error):
        return None
    whole = re.fullmatch(r"[0-9]{1,18}", step) and split in _SPLITS and name and _NOT_A_LETTER not in name
    return LoggedNumber(int(step), split, name, value) if whole else None


def _rows_up_to(path: Path, step: int) -> str:
    """The header and those rows of the table at ``path``, if there is one, that belong to the first ``step`` steps."""
    kept = io.StringIO()
    writer = csv.writer(kept, lineterminator="\n")
    writer.writerow(HEADER)
    try:
        rows = read_metrics(path)
    except ConfigError as error:
        logger.warning("%s; begun anew", error)
        rows = []
    writer.writerows(row for row in rows if row.step <= step)
    return kept.getvalue()
