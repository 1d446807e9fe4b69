"""What a recipe cannot mend: the notes above its lines."""

from __future__ import annotations

from collections.abc import Iterator

from detkit.app.recipe import rules
from detkit.app.recipe.findings import Findings, rarest
from detkit.app.recipe.given import Given, View
from detkit.app.recipe.speed import Pace

#: The rarest class of bccd has 209 boxes and an AP50 of 0.863; with a tenth of that nothing was measured.
_FEW_BOXES = 20

#: raccoon's 161 pictures are the fewest that a recipe of the house was run on.
_FEW_IMAGES = 50

#: All boxes are of one size where nine of ten differ by less than this factor.
_ONE_SIZE = 1.25

_MOST_NAMED = 5


def describe(findings: Findings) -> list[str]:
    """The data in a few lines."""
    f, long_sides = findings, findings.long_sides
    most = sorted(zip(f.names, f.boxes.tolist(), strict=True), key=lambda row: -row[1])
    return [
        f"{f.num_images} images to learn from, {f.num_val} to measure by; longer side {long_sides.min():.0f} to "
        f"{long_sides.max():.0f} px, median {f.long_side}",
        f"{f.boxes.sum()} objects of {len(f.names)} classes ({_listed(most)}); {f.per_image.mean():.1f} an image, "
        f"{f.per_image.max()} at most",
        f"side of an object (root of its area): a tenth below {f.side(0.1, None):.0f} px, half below "
        f"{f.side(0.5, None):.0f}, nine tenths below {f.side(0.9, None):.0f}",
    ]


def notes(given: Given, pace: Pace, view: View) -> list[str]:
    """What the data, the time or the computer lack, each in a line."""
    return [*_of_images(given.findings), *_of_classes(given.findings), *_of_time(given, pace, view)]


def _of_images(f: Findings) -> Iterator[str]:
    if f.num_images < _FEW_IMAGES:
        yield (
            f"{f.num_images} image{'s' * (f.num_images > 1)} to learn from: what is learnt is likely to hold for these "
            "alone; a hundred or two are a start"
        )
    if f.num_val == 0:
        yield "nothing to measure by: no AP, and no best.pt; tools/convert.py 'into={train: 0.8, val: 0.2}' splits data"
    elif not f.val_boxes.sum():
        yield "not one object in the images to measure by: AP is not defined"
    if f.num_shared:
        yield f"{f.num_shared} of the {f.num_val} images to measure by are learnt from too: AP will say too much"
    if f.is_grey:
        yield "the images are grey: changes of colour would teach nothing, and there are none"
    low, high = f.side(0.05, None), f.side(0.95, None)
    if high < _ONE_SIZE * low:
        yield f"all objects are of about one size ({low:.0f} to {high:.0f} px): others will hardly be found"


def _of_classes(f: Findings) -> Iterator[str]:
    total = f"of {len(f.names)} classes"
    if without := [name for name, boxes in rarest(f, 1) if not boxes]:
        named = ", ".join(without[:_MOST_NAMED]) + _dots(len(without))
        yield f"without a box to learn from: {len(without)} {total}: {named}"
    if few := [row for row in rarest(f, _FEW_BOXES) if row[1]]:
        yield f"with fewer than {_FEW_BOXES} boxes, and so rarely found: {len(few)} {total}: {_listed(few)}"


def _of_time(given: Given, pace: Pace, view: View) -> Iterator[str]:
    shown = rules.images_shown(given, pace, view)
    number, each = rules.evaluations(given, pace, view)
    if shown < rules.LEAST:
        enough = given.minutes * rules.ENOUGH / shown
        yield (
            f"{given.minutes:g} minutes show {shown:.0f} images, and no recipe here was run with fewer than "
            f"{rules.LEAST}: about {enough:.0f} minutes show {rules.ENOUGH}"
        )
    if number * each > 60 * given.minutes / 2:
        yield f"measuring {given.findings.num_val} images takes {each / 60:.1f} minutes, which is not in the time given"
    lost = given.findings.share_below(rules.TOLD_APART, view.scale)
    if lost > rules.FEW:
        yield f"{lost:.1%} of the objects are below {rules.TOLD_APART} px there, which will hardly be learnt"
    if view.is_tile:
        yield (
            "learnt on tiles, so look tile by tile: tools/evaluate.py checkpoint=RUN_FOLDER/best.pt tta=tiles "
            f"tta.tile={view.size}{' transform.val.resize=null' * (given.findings.long_side > rules.LARGEST_WHOLE)}"
        )


def _listed(rows: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {boxes}" for name, boxes in rows[:_MOST_NAMED]) + _dots(len(rows))


def _dots(number: int) -> str:
    return ", ..." if number > _MOST_NAMED else ""
