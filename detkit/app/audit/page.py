"""The page of ``tools/audit.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detkit.app.audit.found import COLUMNS, Advice, Audit, in_columns
from detkit.app.pages.html import Bar, advice, bars, page, pair, paragraphs, section, table, tiles

_COLUMNS = (
    "Crowded: of those with none, how many would have one if they were alone in their image. Ceiling: the recall at "
    "most, if an object without a reference is never found."
)

_POOR = "Objects without a reference, and those whose references all overlap them by less than half."

#: Objects that the page names; audit.json has all.
_MOST_NAMED = 12


def audit_page(
    audit: Audit, changes: Sequence[Advice], source: str, albums: Sequence[str] = (), beside: Audit | None = None
) -> str:
    """The HTML page; ``albums`` are the sections with pictures, ``beside`` is of a head beside the flow's."""
    count = audit.num_positive
    todo = [(a.change, a.text.removeprefix(a.change).lstrip(": ").capitalize() + ".") for a in changes if a.change]
    said = paragraphs(*(a.text for a in changes if not a.change))
    levels = [
        Bar(f"{audit.wording.level} {value:g}", float(n), f"{n} for {objects} objects")
        for value, n, objects in audit.by_level()
    ]
    parts = [
        tiles(
            {
                "objects": str(len(count)),
                "have no reference": f"{(count == 0).mean():.1%}",
                "have a poor fit": f"{audit.poor.mean():.1%}",
                "recall at most": f"{(count > 0).mean():.1%}",
                "positives an image": f"{count.sum() / audit.num_images:.1f}",
            }
        ),
        section(
            "What to change", said, *([advice(todo)] if todo else []),
            note=f"Each change was tried on these boxes. {audit.wording.meaning}",
        ),
        pair(
            section("Poor fit by size", _shares(audit, "size"), note="Side in px of the network input."),
            section("Poor fit by class", _shares(audit, "class"), note=_POOR),
        ),
        *albums,
        section("Positives by level", bars(levels)),
        section("All numbers", table(COLUMNS, [in_columns(row) for row in audit.rows()]), note=_COLUMNS),
        *([] if beside is None else [section(
            "The head beside it, in training alone (model.head.auxiliary)",
            table(COLUMNS, [in_columns(row) for row in beside.rows()]), note=f"{beside.in_words()}. {_COLUMNS}",
        )]),
        section("Objects with a poor fit", _poor_objects(audit), note="The worst ones; audit.json names every one."),
    ]  # fmt: skip
    return page(audit.wording.headline, f"{source}: {audit.num_images} images", parts)


def _shares(audit: Audit, kind: str) -> str:
    shares = [
        Bar(name, float(audit.poor[mask].mean()), f"{audit.poor[mask].mean():.0%} of {mask.sum()}")
        for group, name, mask in audit.groups()
        if group == kind and mask.any()
    ]
    return bars(shares, "var(--bad)")


def _poor_objects(audit: Audit) -> str:
    indices = np.flatnonzero(audit.poor)
    indices = indices[np.argsort(audit.fit[indices], kind="stable")][:_MOST_NAMED]
    if not len(indices):
        return paragraphs("None.")
    rows = []
    for row in (audit.describe(int(i)) for i in indices):
        x1, y1, x2, y2 = row["box_in_network"]
        annotation = "" if row["annotation_id"] is None else str(row["annotation_id"])
        name = f"{Path(row['file']).name}, id {row['image_id']}"
        size = f"{x2 - x1:.0f} x {y2 - y1:.0f}"
        rows.append([name, annotation, row["class"], size, f"{row['fit']:.2f}", row["reason"]])
    return table(["image", "annotation", "class", "px", "IoU", "why"], rows)
