"""The table of a comparison: one row for each system."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Column, Table
from rich.text import Text

from detkit.app.compare.runs import System
from detkit.evaluation.bootstrap import CONFIDENCE, LEAST_SAMPLES, Difference, image_weights, paired_difference
from detkit.evaluation.matches import accumulate, match
from detkit.utils.progress import track

NOT_SHOWN = "no difference shown"

#: In place of an interval, where none can be given.
NOT_DEFINED = "not defined"
TOO_FEW = "too few samples"
TOO_FEW_IMAGES = "too few images"

#: Beside an interval that does not hold the noise of training.
IMAGES_ALONE = "(images alone)"


@dataclass(frozen=True)
class Row:
    """What the table tells of a system.

    ``means`` and ``deviations``: of each metric over the runs, the standard deviation nan for a single one.
    ``difference``: to the baseline in the compared metric; None for the baseline itself. ``costs``: parameters, flops,
    images/s of training, and bytes of memory; means over the runs, None where it was not measured. ``resampled``:
    (S, 1 + B), the compared metric of each run with the weights of the images' samples.
    """

    system: System
    means: Mapping[str, float]
    deviations: Mapping[str, float]
    difference: Difference | None
    costs: Mapping[str, float | None]
    resampled: np.ndarray


def make_rows(
    systems: Sequence[System], baseline: System, metric: str, shown: Sequence[str], num_samples: int, seed: int
) -> list[Row]:
    """Score every run on the same samples of the images, and compare with ``baseline``."""
    num_images = len(systems[0].runs[0].scored.truth.image_ids)
    weights = image_weights(num_images, num_samples, seed)
    all_runs = [(system, run) for system in systems for run in system.runs]
    values: dict[str, list[np.ndarray]] = {system.name: [] for system in systems}
    for system, run in track(all_runs, len(all_runs), "resampling images"):
        matches = match(run.scored)
        values[system.name].append(accumulate(matches, matches.metric(metric), weights))
    resampled = {name: np.stack(rows) for name, rows in values.items()}
    rows = []
    for system in systems:
        numbers = {name: system.values(name) for name in shown}
        difference = None
        if system is not baseline:
            difference = paired_difference(resampled[baseline.name], resampled[system.name], num_images)
        rows.append(
            Row(
                system=system,
                means={name: float(v.mean()) for name, v in numbers.items()},
                deviations={name: float(v.std(ddof=1)) if len(v) > 1 else float("nan") for name, v in numbers.items()},
                difference=difference,
                costs=_costs(system),
                resampled=resampled[system.name],
            )
        )
    return rows


def _costs(system: System) -> dict[str, float | None]:
    measured = {
        "parameters": [run.result.get("parameters") for run in system.runs],
        "flops": [run.result.get("flops") for run in system.runs],
        "images_per_second": [run.images_per_second for run in system.runs],
        "memory": [run.result.get("memory") for run in system.runs],
    }
    return {
        name: None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))
        for name, values in measured.items()
    }


#: The last so many columns tell what a system costs.
NUM_COSTS = 4


def headings(metric: str, shown: Sequence[str]) -> list[str]:
    """Of the columns of the table of systems, for the metrics ``shown``."""
    return [
        *("system", "seeds"),
        *shown,
        f"{metric} difference",
        f"{CONFIDENCE:.0%} interval",
        *("parameters", "GFLOPs", "images/s", "memory"),
    ]


def cells(row: Row, shown: Sequence[str]) -> list[str]:
    """One row in words, under :func:`headings`."""
    numbers = [_mean(row.means[name], row.deviations[name]) for name in shown]
    c = row.costs
    return [
        row.system.name,
        ", ".join(str(run.seed) for run in row.system.runs),
        *numbers,
        *difference_words(row.difference),
        _number(c["parameters"], 1e6, " M", 2),
        _number(c["flops"], 1e9, "", 2),
        _number(c["images_per_second"], 1, "", 1),
        _number(c["memory"], 2**20, " MiB", 0),
    ]


def as_markdown(rows: Sequence[Row], metric: str, shown: Sequence[str]) -> str:
    """The table as text for a page or an issue."""
    lines = [headings(metric, shown), *(cells(row, shown) for row in rows)]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    rule = "| --- |" + " ---: |" * (len(lines[0]) - 1)
    return "\n".join([text[0], rule, *text[1:]]) + "\n"


def as_csv(rows: Sequence[Row], metric: str, shown: Sequence[str]) -> str:
    """All digits, one column for each number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    both = [f"{name}_{what}" for name in shown for what in ("mean", "std")]
    interval = [f"{metric}_difference", "low", "high", "difference_shown", "seeds_vary", "undefined_samples"]
    writer.writerow(["system", "seeds", *both, *interval, "parameters", "flops", "images_per_second", "memory_bytes"])
    for row in rows:
        numbers = [x for name in shown for x in (row.means[name], row.deviations[name])]
        d = row.difference
        told = [""] * len(interval)
        if d is not None:
            told = [d.value, d.low, d.high, d.is_shown, d.seeds_vary, d.num_undefined]
        seeds = " ".join(str(run.seed) for run in row.system.runs)
        writer.writerow([row.system.name, seeds, *numbers, *told, *row.costs.values()])
    return out.getvalue()


def as_rich(rows: Sequence[Row], metric: str, shown: Sequence[str]) -> list[Table]:
    """The table in three, for a terminal is narrow: scores, differences, costs."""
    names = headings(metric, shown)
    told = [cells(row, shown) for row in rows]
    ends = [0, 2 + len(shown), len(names) - NUM_COSTS, len(names)]
    tables = []
    for start, end in itertools.pairwise(ends):
        columns = [0, *range(max(start, 1), end)]
        table = Table(*(Column(names[i], justify="right" if i else "left", overflow="fold") for i in columns))
        for row in told:
            table.add_row(*(Text(row[i]) for i in columns))
        tables.append(table)
    return tables


def score(value: float, digits: int = 3) -> str:
    """A number of COCO's in words; "-" where it is not defined."""
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _mean(value: float, deviation: float) -> str:
    return score(value) if np.isnan(deviation) else f"{score(value)} ± {deviation:.3f}"


def difference_words(difference: Difference | None) -> tuple[str, str]:
    """The difference to the baseline, None for the baseline itself, and its interval with what it means."""
    if difference is None:
        return "baseline", ""
    value = "-" if np.isnan(difference.value) else f"{difference.value:+.3f}"
    if reason := no_interval(difference):
        return value, reason + _undefined(difference) * (reason == TOO_FEW)
    words = [f"[{difference.low:+.3f}, {difference.high:+.3f}]"]
    if not difference.seeds_vary:
        words.append(IMAGES_ALONE)
    if not difference.is_shown:
        words.append(NOT_SHOWN)
    return value, " ".join(words) + _undefined(difference)


def no_interval(difference: Difference) -> str:
    """Why ``difference`` has no interval; nothing where it has one."""
    if np.isnan(difference.value):
        return NOT_DEFINED
    if not np.isnan(difference.low):
        return ""
    return TOO_FEW if difference.num_samples - difference.num_undefined < LEAST_SAMPLES else TOO_FEW_IMAGES


def _undefined(difference: Difference) -> str:
    """How many of the samples do not define the metric, if any."""
    if difference.num_undefined == 0:
        return ""
    return f" ({difference.num_undefined} of {difference.num_samples} samples undefined)"


def _number(value: float | None, unit: float, name: str, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}{name}"
