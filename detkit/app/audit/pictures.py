"""Pictures of the objects that ``tools/audit.py`` finds left out, by cause."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from detkit.app.audit.found import Audit
from detkit.app.audit.plan import Planner
from detkit.app.pages.crops import CANDIDATE, DETECTION, OBJECT, Corners, Shot, album, best_shots, place_of
from detkit.app.pages.html import section
from detkit.data.datasets.base import DetectionDataset
from detkit.data.decode import ImageError
from detkit.structures import Affine, Batch
from detkit.utils.log import logger

#: For one picture so many of the worst objects are looked at, to find them in different images.
_LOOKED_AT = 5


def albums(
    audit: Audit, planner: Planner, batches: Sequence[Batch], dataset: DetectionDataset, count: int
) -> list[str]:
    """A section of ``count`` pictures for each cause of a poor fit; none where an image cannot be read."""
    if count == 0:
        return []
    places = [
        (batch, i, k)
        for batch in batches
        for i, target in enumerate(batch.targets)
        for k in (~target.ignore).nonzero().squeeze(1).tolist()
    ]  # in the order of the audit's rows
    nearest = f"nearest {planner.asked.wording.noun}"
    roles = {"object": OBJECT, "object that has its reference": DETECTION, nearest: CANDIDATE}
    rows = {truth.image_id: row for row, truth in enumerate(dataset.truths)}
    by_cause: dict[str, list[int]] = defaultdict(list)
    for j in np.flatnonzero(audit.poor).tolist():
        by_cause[audit.cause(j)].append(j)
    sections = []
    for cause, objects in sorted(by_cause.items(), key=lambda item: -len(item[1])):
        worst = sorted(objects, key=lambda j: (audit.fit[j], audit.sides[j]))[: _LOOKED_AT * count]
        shots = [shot for j in worst if (shot := _shot(audit, planner, j, *places[j], rows)) is not None]
        try:
            pictures = album(best_shots(shots, count), dataset, roles)
        except ImageError as error:
            logger.warning("no pictures in the report: %s", error)
            return []
        sections.append(section(f"{cause.capitalize()} ({len(objects)})", pictures))
    return sections


def _shot(audit: Audit, planner: Planner, j: int, batch: Batch, i: int, k: int, rows: Mapping[int, int]) -> Shot | None:
    """Object ``j`` of ``audit``, which is object ``k`` of image ``i`` of ``batch``; None where images were mixed."""
    meta, target = batch.images.meta[i], batch.targets[i]
    if meta.affine is None:
        return None
    nearest, rival = planner.seen(batch, i, k)
    boxes = [(_original(target.boxes[k], meta.affine), OBJECT, "")]
    if rival is not None:
        boxes.append((_original(target.boxes[rival], meta.affine), DETECTION, ""))
    if nearest is not None:
        boxes.append((_original(nearest, meta.affine), CANDIDATE, ""))
    w, h = (target.boxes[k, 2:] - target.boxes[k, :2]).tolist()
    what = f"{audit.names[int(audit.labels[j])]} of {w:.0f} x {h:.0f} px"
    if nearest is not None:
        what += f", IoU {float(planner.overlap(nearest[None], target.boxes[k])):.2f}"
    annotation = int(audit.annotations[j])
    where = place_of(meta.file, meta.image_id, annotation if annotation >= 0 else None)
    return Shot(rows[meta.image_id], boxes, what, where, -float(audit.fit[j]) - 1e-6 * float(audit.sides[j]))


def _original(box: Tensor, affine: Affine) -> Corners:
    x1, y1, x2, y2 = affine.undo(box[None].double())[0].tolist()
    return x1, y1, x2, y2
