"""What more training images bring: systems that differ by the share of the images that they saw, read as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detkit.app.compare.figures import COLORS
from detkit.app.compare.table import IMAGES_ALONE, NOT_SHOWN, Row, no_interval
from detkit.evaluation.bootstrap import CONFIDENCE
from detkit.evaluation.learning_curve import LEAST_POINTS, LearningCurve, learning_curve
from detkit.pictures.draw import PNG_METADATA

#: What may set the systems apart: the share, and whether there was a subset at all.
_SHARE, _SEED = "data.subset.share", "data.subset.seed"


def read_curve(rows: Sequence[Row]) -> LearningCurve | None:
    """The curve of ``rows``; None where they differ by something else, have fewer than three shares or no seed in
    common, or where the metric is not defined."""
    if not {_SHARE} <= set(rows[0].system.differences) <= {_SHARE, _SEED}:
        return None
    by_share = {_share(row): row for row in rows}
    shares = sorted(by_share)
    common = set.intersection(*({run.seed for run in row.system.runs} for row in rows))
    if len(shares) < max(LEAST_POINTS, len(rows)) or not common:
        return None
    values = np.stack([_of_seeds(by_share[share], sorted(common)) for share in shares], axis=1)
    num_images = len(rows[0].system.runs[0].scored.truth.image_ids)
    curve = learning_curve(np.array(shares), values, num_images)
    return None if np.isnan(curve.doubled.value) else curve


def in_words(curve: LearningCurve, metric: str) -> str:
    """What the curve says, and what it cannot say."""
    d = curve.doubled
    alone = f" {IMAGES_ALONE}" * (not d.seeds_vary)
    shown = "" if d.is_shown else f", {NOT_SHOWN}"
    interval = f"{CONFIDENCE:.0%} interval [{d.low:+.3f}, {d.high:+.3f}]{alone}{shown}"
    limits = "The interval holds other validation images and seeds, not that the law may bend"
    if reason := no_interval(d):
        interval, limits = f"without an interval ({reason})", "The law may bend"
    scores = ", ".join(f"{score:.3f} of {share:g}" for share, score in zip(curve.shares, curve.scores, strict=True))
    return (
        f"Number of images: {metric} is {scores} of them. Each doubling took {curve.taken_off:.0%} off what is lacking "
        f"to 1; going on like that, twice as many images would bring {d.value:+.3f}, {interval}. This is "
        f"about images like these, labelled as well, and as many steps of training. {limits}: by that of the smaller "
        f"shares alone the largest would have had {curve.foretold:.3f}, and it had {curve.scores[-1]:.3f}."
    )


def draw_images(path: Path, curve: LearningCurve, metric: str) -> None:
    """The scores over the share of the images, and where the law leads with twice as many."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    last, score, d = curve.shares[-1], curve.scores[-1], curve.doubled
    axis.plot(curve.shares, curve.scores, "o-", color=COLORS[0], label="measured, mean over the seeds")
    axis.plot([last, 2 * last], [score, score + d.value], ":", color=COLORS[1])
    whiskers = [[d.value - d.low], [d.high - d.value]]
    told = no_interval(d) or f"{CONFIDENCE:.0%} interval"
    axis.errorbar(
        [2 * last], [score + d.value], yerr=whiskers, fmt="o", color=COLORS[1], capsize=4,
        label=f"twice as many, by the law, {told}",
    )  # fmt: skip
    axis.set_xscale("log", base=2)
    ticks = [*curve.shares.tolist(), 2 * last]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set(xlabel="training images, as a share of all there are", ylabel=f"validation {metric}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    figure.savefig(path, dpi=110, metadata=PNG_METADATA)


def _share(row: Row) -> float:
    share = row.system.differences[_SHARE]
    return 1.0 if share is None else float(share)  # a run without a subset sees all


def _of_seeds(row: Row, seeds: Sequence[int]) -> np.ndarray:
    """(S, 1 + B)."""
    place = {run.seed: i for i, run in enumerate(row.system.runs)}
    return row.resampled[[place[seed] for seed in seeds]]
