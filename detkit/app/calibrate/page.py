"""The page of ``tools/calibrate.py``."""

from __future__ import annotations

from detkit.app.calibrate.found import HEADINGS, Calibration
from detkit.app.pages.html import curves, page, pair, section, table, tiles
from detkit.evaluation.reliability import reliability

_PROMISE = (
    "By learn then test (Angelopoulos et al. 2021) on these images, for images like them. Precision is the share of "
    "right ones among an image's detections, in the mean over images that have any; recall is the share of its objects "
    "that are found; false alarms count images with one or more. A class with too few images has the shared threshold."
)


def calibration_page(calibration: Calibration, source: str) -> str:
    """The HTML page."""
    thresholds = calibration.thresholds
    before, after = calibration.errors()
    own = sum(row.own for row in thresholds.rows)
    numbers = {
        "images": str(thresholds.num_images),
        "classes with a threshold of their own": f"{own} of {len(thresholds.rows)}",
        "calibration error of the scores": f"{before:.3f}",
    }
    if after is not None:
        numbers["of the mapped ones"] = f"{after:.3f}"
    parts = [
        tiles(numbers),
        section(f"Thresholds for {thresholds.aim.in_words}", table(HEADINGS, calibration.rows()), note=_PROMISE),
        pair(
            section(
                "Over the threshold", _over_threshold(calibration),
                note="All classes together, means over images; shaded: where 95\u00a0% of such means lie.",
            ),
            section("Scores as probabilities", _reliability(calibration), note="Share that is right over the score."),
        ),
    ]  # fmt: skip
    return page("Thresholds that keep a promise", source, parts)


def _over_threshold(calibration: Calibration) -> str:
    found = calibration.curves()
    series = {name: (curve.x.tolist(), curve.y.tolist()) for name, curve in found.items()}
    bands = {name: (curve.low.tolist(), curve.high.tolist()) for name, curve in found.items()}
    return curves(series, "threshold", "share", bands)


def _reliability(calibration: Calibration) -> str:
    judged = calibration.judged
    of = {"scores": judged.scores}
    if calibration.scores is not None:
        of["mapped"] = calibration.scores(judged.scores)
    series: dict[str, tuple[list[float], list[float]]] = {"probabilities": ([0.0, 1.0], [0.0, 1.0])}
    for name, scores in of.items():
        bins = reliability(scores, judged.right)
        series[name] = ([score for score, _, _ in bins], [share for _, share, _ in bins])
    return curves(series, "score", "share that is right")
