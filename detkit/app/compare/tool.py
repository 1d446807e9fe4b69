"""``tools/compare.py``: which of these runs is better, and is the difference more than chance?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich
from rich.text import Text

from detkit.app.cli.failure import told_plainly
from detkit.app.compare.figures import draw_bars, draw_curves
from detkit.app.compare.folder import TABLE, refuse_other, write_down
from detkit.app.compare.images import draw_images, in_words, read_curve
from detkit.app.compare.page import make_page
from detkit.app.compare.runs import System, check_same_classes, made_unlike, read_systems
from detkit.app.compare.table import (
    IMAGES_ALONE,
    NOT_DEFINED,
    TOO_FEW_IMAGES,
    Row,
    as_csv,
    as_markdown,
    as_rich,
    make_rows,
    no_interval,
)
from detkit.app.run.beside import refuse_run
from detkit.app.sweep.folder import JOBS
from detkit.config import ConfigError
from detkit.config.ranges import check_range
from detkit.config.registry import did_you_mean
from detkit.evaluation.bootstrap import CONFIDENCE, LEAST_IMAGES, LEAST_SAMPLES
from detkit.utils.files import atomic_write, output_folder
from detkit.utils.log import set_up_logging

#: Columns of every table whose runs have these numbers: thresholds of one's own may leave out 0.5 or 0.75.
_SHOWN = ("AP", "AP50", "AP75")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare finished runs: one table over seeds, figures, a page.")
    parser.add_argument("paths", nargs="+", type=Path, help="run folders, or the folder of a sweep")
    parser.add_argument("--baseline", help="name of the system that the others are compared with; default: the first")
    parser.add_argument("--metric", default="AP", help="one of COCO's numbers: AP, AP50, APs, AR100, ...; default: AP")
    parser.add_argument(
        "--show", action="append", default=[], metavar="NAME", help="one more column: APs, val_loss, ..."
    )
    parser.add_argument("--samples", type=int, default=1000, help="resamplings of the images; default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--output", type=Path, help="default: comparison/ in the sweep's folder, or here")
    options = parser.parse_args(arguments)
    if options.samples < LEAST_SAMPLES:
        parser.error(
            f"--samples must be {LEAST_SAMPLES} or more, not {options.samples}: fewer say nothing about an interval"
        )
    set_up_logging()
    with told_plainly():
        check_range("--seed", options.seed, 0)
        compare(
            options.paths, options.output, options.baseline, options.metric, options.samples, options.seed, options.show
        )


def compare(
    paths: Sequence[Path],
    output: Path | None,
    baseline: str | None,
    metric: str,
    num_samples: int,
    seed: int,
    more: Sequence[str] = (),
) -> list[Row]:
    """Write table, figures and page into ``output``, and show the table.

    Args:
        more: numbers of the runs' ``evaluation.json`` that get columns too.

    Raises:
        ConfigError: the runs cannot be compared, a name is unknown, or ``output`` is the folder of a run or holds a
            comparison of others.
    """
    refuse_run(output, "--output")
    systems, missing = read_systems(paths)
    chosen = _find(systems, baseline)
    runs = [run for system in systems for run in system.runs]
    usual = [name for name in _SHOWN if all(name in run.metrics for run in runs)]
    shown = list(dict.fromkeys([metric, *usual, *more]))
    check_same_classes(systems, shown)
    is_sweep = len(paths) == 1 and (paths[0] / JOBS).is_file()
    output = output or (paths[0] / "comparison" if is_sweep else Path("comparison"))
    refuse_other(output, paths)
    with output_folder(output):
        rows = make_rows(systems, chosen, metric, shown, num_samples, seed)
        notes = _notes(rows, metric, num_samples)
        if unlike := made_unlike(systems):
            notes.append(f"Not all runs were made alike, by value how many: {'; '.join(unlike)}.")
        if missing:
            notes.append(f"Left out, since they have not come to their end: {'; '.join(missing)}.")
        write_down(output, paths)
        pictures = [output / "differences.png", output / "learning_curves.png"]
        bars, curves = pictures
        if (of_images := read_curve(rows)) is not None:
            notes.insert(0, in_words(of_images, metric))
            pictures.append(output / "number_of_images.png")
            draw_images(pictures[-1], of_images, metric)
        draw_bars(bars, rows, metric)
        draw_curves(curves, systems, metric)
        atomic_write(output / "table.md", as_markdown(rows, metric, shown))
        atomic_write(output / TABLE, as_csv(rows, metric, shown))
        title = f"{len(systems)} systems, {len(runs)} runs"
        atomic_write(output / "index.html", make_page(title, rows, metric, shown, notes, pictures))
    console = rich.get_console()
    console.print(*as_rich(rows, metric, shown))
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    console.print("table, figures and page:", Text(str(output / "index.html"), "bold"), soft_wrap=True)
    return rows


def _find(systems: Sequence[System], name: str | None) -> System:
    if name is None:
        return systems[0]
    names = [system.name for system in systems]
    if name not in names:
        raise ConfigError(f"--baseline: no system {name!r}{did_you_mean(name, names)}")
    return systems[names.index(name)]


def _notes(rows: Sequence[Row], metric: str, num_samples: int) -> list[str]:
    """How the numbers came about, in the reader's words."""
    num_images = len(rows[0].system.runs[0].scored.truth.image_ids)
    notes = ["Scores: mean ± standard deviation over the seeds, each run at its best evaluation."]
    if num_images < LEAST_IMAGES:
        notes.append(
            f"{TOO_FEW_IMAGES}: one validation image does not tell how far {metric} varies from image to image, so "
            "there are no intervals, and whether a difference is more than chance stays open."
        )
    else:
        notes.append(
            f"Intervals: {CONFIDENCE:.0%}, each for itself, from {num_samples} resamplings of the {num_images} "
            f"validation images, the same for all runs. An interval that spans zero shows no difference in {metric}; "
            "it does not show that there is none."
        )
    differences = [row.difference for row in rows if row.difference is not None]
    with_interval = [d for d in differences if not no_interval(d)]
    if np.isnan(rows[0].means[metric]):
        notes.append(f"{NOT_DEFINED}: the validation images have no object that {metric} is about.")
    elif undefined := max((d.num_undefined for d in differences), default=0):
        notes.append(
            f"{undefined} of the {num_samples} resamplings have no object that {metric} is about and are left out: few "
            "images hold such objects, and an interval can only tell of those few. Fewer than "
            f"{LEAST_SAMPLES} that define it give no interval; --samples takes more."
        )
    if any(d.seeds_vary for d in with_interval):
        notes.append("The noise of training is in them too: the variance over the seeds of both systems enters.")
    if not all(d.seeds_vary for d in with_interval):
        notes.append(
            f"{IMAGES_ALONE}: where a system has one seed only, the noise of training is not in the interval: it is "
            "about these very weights, and another seed may give another answer."
        )
    notes.append(
        "Parameters: all, frozen ones too. GFLOPs: detection in the first validation image, a multiplication and an "
        "addition counting as two; convolutions, matrix products and attention only. images/s: training, the median of "
        "the logged steps. Memory: the peak, of the GPU or, on the CPU, of the whole process."
    )
    return notes


if __name__ == "__main__":
    main()
