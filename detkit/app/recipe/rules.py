"""The rules: what was found, what was measured, and the choice that follows, each with its reason.

Each is a pure function. What they rest on is what the recipes of the house reached (the headers in configs/experiment),
its sweeps (configs/sweep/README.md) and its pages; docs/recipes.md lists it, and what nobody has measured.
"""

from __future__ import annotations

import math
import re

from detkit.app.recipe.findings import Findings
from detkit.app.recipe.given import DETECTORS, SIZES, Basis, Choice, Fits, Given, View
from detkit.app.recipe.speed import Pace, Speeds

#: A map shows what an object is from two of its cells on, here of stride 4 (detkit/app/audit/advice.py), and the least
#: anchors of the house's recipes have 16 px.
TOLD_APART, LEAST_ANCHOR = 8, 16

#: Objects that may be too small, as a share of all: less than what the audit finds worth a word.
FEW = 0.02

#: Images after which bccd has most of what there is (docs/recipes.md: AP 0.580, and 0.591 after 1600), and so few that
#: even objects that are too small may become smaller.
ENOUGH, LEAST = 1000, 400

#: The longer side at which the house's pretrained recipes were run (427 px), and a usual one of small pictures.
USUAL_SIZE, USUAL_SIZE_UNTRAINED = 416, 320

#: No input is smaller than this for want of time alone.
SMALLEST = 224

#: A larger input than twice the picture shows nothing more.
_MOST_ENLARGED = 2

#: From this share of objects that are too small at any size on, and half as many in the pictures' own size: tiles.
_MANY_TINY = 0.25

#: Tiles are so many times as large as nearly all objects.
_OBJECTS_IN_TILE = 4

#: The longer side of the largest whole image that is measured by: data=shapes_large has it.
LARGEST_WHOLE = 2048

#: The longest schedule of the house's recipes, in epochs (centernet/coco_r18, as published).
MOST_EPOCHS = 140

#: Share of the time that evaluations before the last one may take, and how many there are at most.
_EVALUATING, _MOST_EVALUATIONS = 0.1, 4

#: An untimed start-up, seconds; and the share of the rest that is planned for: no computer is always as fast.
_START, _PLANNED = 15.0, 0.95

#: bf16 is worth its rounding from this on.
_FASTER = 1.15

#: Above so many classes: as in faster_rcnn/shapes_many, which has 240.
_MANY_CLASSES = 100

#: Detections of an image that come out and count, unless one says otherwise.
_USUAL_DETECTIONS = 100

#: What a class name says that is another one in the mirror.
_SIDED = re.compile(r"(^|[^a-z])(left|right)([^a-z]|$)|^[0-9a-z]$", re.IGNORECASE)


def needed_size(findings: Findings) -> int:
    """The least of SIZES at which the objects can be told apart, or the largest one that is of use."""
    allowed = [s for s in SIZES if s <= max(SIZES[0], _MOST_ENLARGED * findings.long_side)]
    fits = (s for s in allowed if findings.share_below(TOLD_APART, s) <= FEW and findings.side(0.1, s) >= LEAST_ANCHOR)
    return next(fits, allowed[-1])


def usual_size(given: Given) -> int:
    """What the house's recipes were run at, or the pictures' own size where they are smaller."""
    usual = USUAL_SIZE if given.is_pretrained else USUAL_SIZE_UNTRAINED
    return next(s for s in SIZES if s >= min(usual, given.findings.long_side))


def tile_size(findings: Findings) -> int | None:
    """The side of tiles, where no input of whole images shows the objects and their own pixels do; None elsewhere."""
    lost = findings.share_below(TOLD_APART, SIZES[-1])
    if lost < _MANY_TINY or findings.share_below(TOLD_APART, None) > lost / 2:
        return None
    wanted = _OBJECTS_IN_TILE * findings.side(0.99, None)
    return next((s for s in SIZES if s >= max(wanted, 256)), 640)


def choose_view(given: Given, pace: Pace) -> View:
    """Tiles, or the size of the input: what the objects need, if the time is enough for it."""
    if (tile := tile_size(given.findings)) is not None:
        return View(tile, is_tile=True)
    needed, usual = needed_size(given.findings), usual_size(given)
    size = max(needed, usual)
    while size > SIZES[0] and (shown := images_shown(given, pace, View(size))) < ENOUGH:
        smaller = SIZES[SIZES.index(size) - 1]
        if smaller < min(SMALLEST, usual) or (smaller < needed and shown >= LEAST):
            break
        size = smaller
    return View(size)


def why_view(given: Given, pace: Pace, view: View) -> str:
    """The figures behind the size of the input."""
    findings, shown = given.findings, images_shown(given, pace, view)
    words = (
        f"a tenth of the objects are below {findings.side(0.1, view.scale):.0f} px there, half below "
        f"{findings.side(0.5, view.scale):.0f}, {findings.share_below(TOLD_APART, view.scale):.1%} below {TOLD_APART} "
        f"(two cells of the finest map, from which on a shape can be told); {shown:.0f} images can be shown in the time"
    )
    if view.is_tile:
        lost = findings.share_below(TOLD_APART, SIZES[-1])
        return f"of whole images of {SIZES[-1]} px {lost:.0%} of the objects would be below {TOLD_APART} px; {words}"
    needed, usual = needed_size(findings), usual_size(given)
    if view.size < needed:
        return f"{words}: the objects want {needed} px, at which {images_shown(given, pace, View(needed)):.0f} could be"
    if view.size < usual:
        return f"{words}: at the usual {usual} px {images_shown(given, pace, View(usual)):.0f} could be"
    return f"{words} (bccd has AP 0.580 after {ENOUGH} and 0.591 after 1600, one run each at 427 px)"


def evaluations(given: Given, pace: Pace, view: View) -> tuple[int, float]:
    """How many there are in the run, the last one included, and the seconds of each."""
    seconds = given.findings.num_val * pace.val(val_megapixels(given, view))
    if given.findings.num_val == 0:
        return 0, 0.0
    return min(_MOST_EVALUATIONS, 1 + int(_EVALUATING * 60 * given.minutes / max(seconds, 1e-9))), seconds


def val_megapixels(given: Given, view: View) -> float:
    """Of an image to measure by: the whole of it, of LARGEST_WHOLE px at most."""
    return given.findings.megapixels(min(view.scale or given.findings.long_side, LARGEST_WHOLE))


def training_seconds(given: Given, pace: Pace, view: View) -> float:
    """What is left for training, at least half of the time: of long evaluations the notes tell."""
    number, each = evaluations(given, pace, view)
    whole = 60 * given.minutes
    return _PLANNED * max(whole - _START - number * each, whole / 2)


def images_shown(given: Given, pace: Pace, view: View) -> float:
    """How many images training can show in the time."""
    return training_seconds(given, pace, view) / pace.train(given.megapixels(view))


def choose_steps(given: Given, pace: Pace, view: View, basis: Basis) -> Choice:
    """As many steps as the time has, in twenties, and no more epochs than anyone has tried."""
    batch_size, f = batch_of(given, basis), given.findings
    shown = images_shown(given, pace, view)
    longest = max(ENOUGH, MOST_EPOCHS * f.num_images)
    steps = max(20, int(min(shown, longest) / batch_size) // 20 * 20)
    step = batch_size * pace.train(given.megapixels(view))
    words = f"{step:.2f} s a step; {steps * batch_size} images, {steps * batch_size / f.num_images:.1f} epochs"
    if shown > longest:
        words += f"; the time would have {shown:.0f} images, but no recipe here is longer than {MOST_EPOCHS} epochs"
        words += " (CenterNet's published one, not run to its end here)"
    return Choice("trainer.steps", steps, words)


def choose_evaluations(given: Given, pace: Pace, view: View, steps: int) -> Choice:
    """One at the end, and more where they are cheap: the best of them is kept."""
    number, seconds = evaluations(given, pace, view)
    if number == 0:
        return Choice("trainer.eval_every", None, "there is nothing to measure by")
    every = None if number == 1 else math.ceil(steps / number)
    words = "at the end alone" if number == 1 else f"{number} in all, best.pt is the best of them"
    return Choice("trainer.eval_every", every, f"{words}; each takes about {seconds:.0f} s")


def batch_of(given: Given, basis: Basis) -> int:
    """The basis' own, and four times that on a GPU, which a few images do not keep busy."""
    return basis.batch_size * (4 if given.device == "cuda" else 1)


def choose_batch(given: Given, basis: Basis) -> Choice:
    """See :func:`batch_of`."""
    words = f"as {basis.source}; small batches of AdamW made 3 points on bccd, one run each"
    if given.device == "cuda":
        words = f"4 times that of {basis.source}, to keep a GPU busy; not measured"
    return Choice("data.loader.train.batch_size", batch_of(given, basis), words)


def choose_rate(given: Given, basis: Basis) -> Choice:
    """The basis' own; Adam's rate grows with the root of the batch."""
    ratio = batch_of(given, basis) / basis.batch_size
    words = f"as {basis.source}"
    if ratio > 1:
        words += f", times the root of {ratio:g} for the batch (Malladi et al. 2022, arXiv 2205.10287); not measured"
    return Choice("optim.lr", round(basis.lr * math.sqrt(ratio), 6), words)


def choose_warmup(steps: int, basis: Basis) -> Choice:
    """The basis' own, and an eighth of a short run."""
    warmup = min(basis.warmup_steps, steps // 8)
    return Choice("schedule.warmup_steps", warmup, f"as {basis.source}, and an eighth of the steps at most")


def choose_precision(speeds: Speeds) -> Choice:
    """bf16 where it is faster here."""
    is_faster = speeds.bf16 >= _FASTER
    words = f"a step in bf16 is {speeds.bf16:.2f} times as fast here as in fp32"
    if is_faster:
        words += "; bccd has AP 0.598 in fp32 and 0.597 in bf16 over three seeds, no difference shown"
    return Choice("trainer.precision", "bf16" if is_faster else "fp32", words)


def choose_backbone(given: Given) -> Choice:
    """ImageNet's weights where there are any."""
    if given.is_declined:
        words = "without ImageNet's weights, as pretrained=false says: a small network from random weights"
    elif not given.is_pretrained:
        words = "ImageNet's weights are neither in TORCH_HOME nor to be fetched: a small network from random weights"
    elif given.device == "cuda":
        words = "with ImageNet's weights; COCO's recipes have it on GPUs; not run here"
    else:
        words = "with ImageNet's weights; of the pretrained backbones the one that was run on CPU cores"
    return Choice("/model/backbone", given.backbone, words)


def choose_frozen(given: Given) -> Choice:
    """None where that was run."""
    if given.backbone == "resnet50":
        return Choice("model.backbone.frozen_stages", 2, "stem and C2, as COCO's recipes have it")
    words = "all stages train, as in each recipe of the house on few pictures"
    if given.is_pretrained:
        words += "; 2 is faster, and what it costs was not measured"
    return Choice("model.backbone.frozen_stages", 0, words)


def choose_finest(findings: Findings, view: View, canonical: float) -> Choice:
    """P2 is left out where nothing would be pooled from it."""
    large, pooled = findings.side(0.01, view.scale), canonical / 2
    is_left_out = large >= pooled
    words = f"regions below {pooled:.0f} px are pooled from P2 (stride 4); one object in 100 is below {large:.0f} px"
    return Choice("model.neck.min_stride", 8 if is_left_out else 4, words + ": no need of it" * is_left_out)


def canonical_size(view: View) -> float:
    """The side in px of a region that is pooled at stride 16: small inputs pool from finer levels."""
    return 112.0 if view.size < USUAL_SIZE_UNTRAINED else 224.0


def choose_canonical(view: View) -> Choice:
    """See :func:`canonical_size`."""
    words = (
        "of a region that is pooled at stride 16: 224 as published, 112 for inputs below 320 px as in the quickstart"
    )
    return Choice("model.head.roi.pool.canonical_size", canonical_size(view), words)


def choose_scales(fits: Fits) -> Choice:
    """4, as the house's recipes, unless others fit clearly better."""
    best = min(fits.by_scales, key=lambda scales: (fits.by_scales[scales], scales))
    chosen = (4.0,) if fits.by_scales[4.0,] <= fits.by_scales[best] + FEW else best
    shares = ", ".join(f"{_listed(scales)}: {share:.1%}" for scales, share in fits.by_scales.items())
    words = f"sides in strides of the level; objects that none overlaps by half, by scales: {shares}"
    return Choice("model.head.rpn.anchors.scales", list(chosen), words)


def choose_ratios(fits: Fits) -> Choice:
    """The usual three, unless wider and taller ones fit clearly better."""
    usual, wide = fits.by_ratios
    chosen = wide if fits.by_ratios[wide] < fits.by_ratios[usual] - FEW else usual
    shares = ", ".join(f"{_listed(ratios)}: {share:.1%}" for ratios, share in fits.by_ratios.items())
    return Choice("model.head.rpn.anchors.ratios", list(chosen), f"height / width; the same by ratios: {shares}")


def choose_regions(findings: Findings, is_pretrained: bool) -> Choice:
    """Regions of an image that the second stage learns from: a quarter may be objects."""
    most = float(_quantile(findings))
    least, largest = (128, 512) if is_pretrained else (64, 512)
    number = least
    while number < min(largest, 6 * most):
        number *= 2
    words = f"{most:.0f} objects at most in nine of ten images, and a quarter of the regions may be on them"
    if is_pretrained:
        words += "; on bccd 128 took a quarter less time than the usual 512, and AP was 0.580 after 1000 images"
    return Choice("model.head.roi.sampler.num", number, words)


def choose_selector(view: View) -> list[Choice]:
    """Soft-NMS, where images are measured whole: over tiles the merge removes what it leaves."""
    if view.is_tile:
        return []
    words = (
        "soft-NMS: AP +0.014 [+0.010, +0.017] on bccd and +0.012 [+0.008, +0.016] on shapes over NMS with the same "
        "weights (docs/recipes.md)"
    )
    return [Choice("/selector@model.head.roi.selector", "SoftSelector", words)]


def choose_detections(findings: Findings, detector: str) -> list[Choice]:
    """More than the usual hundred, where an image has more objects."""
    most = int(findings.per_image.max())
    if most <= _USUAL_DETECTIONS:
        return []
    number = math.ceil(1.25 * most / 50) * 50
    place = "roi." if detector == DETECTORS[0] else ""
    words = f"an image has {most} objects, and {_USUAL_DETECTIONS} would be all that"
    return [
        Choice(f"model.head.{place}selector.max_detections", number, f"{words} come out"),
        Choice("evaluator.max_detections", [1, 10, number], f"{words} count"),
    ]


def choose_many_classes(findings: Findings) -> list[Choice]:
    """Plain softmax as it was run on hundreds of classes, where there are so many: none, where there are fewer."""
    number = len(findings.names)
    if number <= _MANY_CLASSES:
        return []
    words = "on 240, after 2000 steps, rare ones have AP +0.045 [+0.012, +0.077] over cosines (configs/sweep/README.md)"
    same = "as in those runs; not measured by itself"
    return [
        Choice("/loss@model.head.roi.cls_loss", "CrossEntropy", f"{number} classes: {words}"),
        Choice("model.head.roi.cls_loss.prior_prob", 0.25, f"what an untrained head gives to all classes, {same}"),
        Choice("model.head.roi.network.class_agnostic", True, f"one box for all classes, {same}"),
        Choice(
            "data.loader.train.sampling._target_",
            "RepeatFactor",
            f"images with a class that fewer than one in 1000 has come more often, {same}",
        ),
    ]


def choose_flip(findings: Findings) -> Choice:
    """Mirrored by chance, unless a class is another one in the mirror."""
    if sided := [name for name in findings.names if _SIDED.search(name)]:
        return Choice("transform.train.flip", None, f"not mirrored: {', '.join(sided[:3])} would be another class")
    return Choice(
        "transform.train.flip.p", 0.5, "mirrored by chance, as in the recipes that were run on bccd and shapes"
    )


def choose_average() -> Choice:
    """None: the cosine ends at rate zero."""
    words = (
        "no moving average: the rate ends at zero, and no run of the house shows a gain; 0.999 for thousands of steps"
    )
    return Choice("trainer.ema_decay", None, words)


def _quantile(findings: Findings) -> float:
    ordered = sorted(findings.per_image.tolist())
    return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]


def _listed(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"
