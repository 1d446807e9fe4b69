"""A recipe: the choices of all rules for one detector and one view of the images, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from detkit.app.recipe import rules
from detkit.app.recipe.given import DETECTORS, Choice, Fits, Given, Measured, View, basis_of
from detkit.app.recipe.speed import Pace, Speeds

#: From here on CenterNet, which wants twice as many images (its header on bccd), could be as good in equal time.
_AS_GOOD = 2.0

#: Words beside what the bases of all recipes have.
_AS_ALL = "as all of the house's recipes for few pictures"


@dataclass(frozen=True, slots=True)
class Option:
    """A detector and a view to run it with; ``doubt``: why it could be the better one, empty for the choice."""

    detector: str
    view: View
    doubt: str = ""

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.detector}_{'tiles_' if self.view.is_tile else ''}{self.view.size}"


def options(given: Given, speeds: Speeds) -> list[Option]:
    """What the rules choose, and after it the one or two that they doubt about."""
    first, other = DETECTORS
    view = rules.choose_view(given, speeds.paces[first])
    found = [Option(first, view), Option(other, view, f"{other} is {_ratio(given, speeds, view):.1f} times as fast")]
    size = None if view.is_tile else _other_size(given, speeds.paces[first], view.size)
    if size is not None:
        found.append(Option(first, View(size), f"{size} px {'show more' if size > view.size else 'take less time'}"))
    return found


def _ratio(given: Given, speeds: Speeds, view: View) -> float:
    first, other = (rules.images_shown(given, speeds.paces[name], view) for name in DETECTORS)
    return other / first


def _other_size(given: Given, pace: Pace, size: int) -> int | None:
    """The next larger input, if half of what is enough can still be shown; else the next smaller one."""
    sizes = rules.SIZES
    larger = next((s for s in sizes if s > size), None)
    is_of_use = larger is not None and larger <= 2 * given.findings.long_side
    if larger is not None and is_of_use and rules.images_shown(given, pace, View(larger)) >= rules.ENOUGH / 2:
        return larger
    smaller = next((s for s in reversed(sizes) if s < size), None)
    return smaller if smaller is not None and smaller >= rules.SMALLEST else None


def make(given: Given, measured: Measured, option: Option, data: str, threads: int | None = None) -> list[Choice]:
    """Every line of the experiment for ``option``, on the data of the preset ``data``."""
    pace = measured.speeds.paces[option.detector]
    return [
        Choice("/model", option.detector, why_detector(given, measured.speeds, option)),
        rules.choose_backbone(given),
        *_parts(option.detector),
        Choice("/data", data, "the data that were looked at"),
        *_of_model(given, measured.fits, option),
        *_of_view(given, pace, option.view),
        rules.choose_flip(given.findings),
        *_of_loading(given, option),
        *_of_updates(given, pace, option),
        *_of_trainer(given, measured.speeds, option),
        *([] if threads is None else [Choice("threads", threads, "those that were timed")]),
    ]


def _of_model(given: Given, fits: Fits, option: Option) -> Iterator[Choice]:
    basis = basis_of(option.detector, given.is_pretrained)
    if option.detector == DETECTORS[0]:
        yield from _of_two_stages(given, fits, option.view)
    yield from (Choice(f"model.{key}", value, f"as {basis.source}") for key, value in basis.values.items())
    yield rules.choose_frozen(given)
    yield from rules.choose_detections(given.findings, option.detector)


def _of_loading(given: Given, option: Option) -> Iterator[Choice]:
    yield rules.choose_batch(given, basis_of(option.detector, given.is_pretrained))
    yield Choice("data.loader.train.num_workers", 1, "one process that loads is enough for few pictures")
    yield Choice("data.loader.val.batch_size", 1 if option.view.is_tile else 4, "images that are evaluated at a time")
    yield Choice("data.loader.val.num_workers", 1, "as in training")


def _of_updates(given: Given, pace: Pace, option: Option) -> Iterator[Choice]:
    basis = basis_of(option.detector, given.is_pretrained)
    steps = rules.choose_steps(given, pace, option.view, basis)
    yield Choice("/optim", "AdamW", f"{_AS_ALL}; SGD had AP 0.558 on bccd where it had 0.591, one run each")
    yield Choice("/schedule", "Cosine", _AS_ALL)
    yield rules.choose_rate(given, basis)
    yield Choice("optim.weight_decay", 0.05, _AS_ALL)
    yield rules.choose_warmup(steps.value, basis)
    yield steps
    yield rules.choose_evaluations(given, pace, option.view, steps.value)


def _of_trainer(given: Given, speeds: Speeds, option: Option) -> Iterator[Choice]:
    basis = basis_of(option.detector, given.is_pretrained)
    yield rules.choose_precision(speeds)
    yield Choice("trainer.channels_last", True, why_channels_last(given))
    yield Choice("trainer.clip_norm", basis.clip_norm, f"as {basis.source}")
    yield rules.choose_average()
    yield Choice("trainer.save_every", 200, "what a kill can cost, in steps")
    yield Choice("trainer.val_loss", False, "a second pass over the images, for a number without a use here")


def why_detector(given: Given, speeds: Speeds, option: Option) -> str:
    """What the house's recipes reached with both, and how fast the other is here."""
    ratio = _ratio(given, speeds, option.view)
    words = (
        "two stages on anchors learn most from few images: AP 0.591 on bccd after 1600 where CenterNet, without "
        f"anchors, has 0.581 after 3200 and RetinaNet 0.573, one run each; CenterNet is {ratio:.1f} times as fast here"
    )
    if option.detector != DETECTORS[0]:
        return f"no anchors: {words}"
    return words + (", so that it could be as good: try=true compares them" if ratio >= _AS_GOOD else "")


def why_channels_last(given: Given) -> str:
    """What it brought where it was timed."""
    words = "memory in the order that convolutions like"
    if given.device == "cuda":
        return f"{words}; not timed on a GPU"
    return f"{words}: 0.56 s an image in place of 0.61 on bccd, on one CPU thread (docs/recipes.md)"


def _parts(detector: str) -> list[Choice]:
    if detector == DETECTORS[0]:
        return []
    return [Choice("/model/neck", "upsample_lateral", "one map of stride 4, joined by the backbone's own")]


def _of_two_stages(given: Given, fits: Fits, view: View) -> Iterator[Choice]:
    findings = given.findings
    yield from rules.choose_many_classes(findings)
    finest = rules.choose_finest(findings, view, rules.canonical_size(view))
    yield finest
    pooled = 4 if finest.value == 4 else 3
    yield Choice(
        "model.head.roi.pool.num_levels", pooled, "all levels of the backbone; the last one is for anchors alone"
    )
    yield rules.choose_canonical(view)
    yield rules.choose_scales(fits)
    yield rules.choose_ratios(fits)
    yield rules.choose_regions(findings, given.is_pretrained)
    yield from rules.choose_selector(view)


def _of_view(given: Given, pace: Pace, view: View) -> Iterator[Choice]:
    words = rules.why_view(given, pace, view)
    yield Choice("/transform", "tiles" if view.is_tile else "fit", "tiles" if view.is_tile else "whole images")
    if not view.is_tile:
        yield Choice(
            "transform.train.resize.size", view.size, f"px of the longer side, here and for evaluation; {words}"
        )
        return
    yield Choice("transform.train.tile.tile", view.size, f"px; {words}")
    if given.findings.long_side > rules.LARGEST_WHOLE:
        resize = {"_target_": "ResizeFit", "size": rules.LARGEST_WHOLE}
        words = (
            "whole images would not fit into memory: objects are smaller here than in training, and AP says too little"
        )
        yield Choice("transform.val.resize", resize, words)
