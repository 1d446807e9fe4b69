"""Batches that a detector learns from without an error, though they can hardly be meant: told once of each kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from detkit.engine.bad_steps.finite import BLACK
from detkit.matching import AnchorGrid, misfit
from detkit.structures import Batch
from detkit.utils.log import logger

#: Every so many rows and columns a pixel tells whether a batch may be black; only then all are looked at.
_SAMPLED = 8


class InputWatch:
    """Looks at batches as they come from the loader, on the CPU: what lies on a device is let be, so as not to wait."""

    def __init__(self, detector: nn.Module) -> None:
        self._anchors = [v for m in detector.modules() for v in vars(m).values() if isinstance(v, AnchorGrid)]
        self._kinds: list[Callable[[Batch], str | None]] = [_black, _relative_box, self._misfit]

    def look(self, step: int, batch: Batch) -> None:
        """Warn of what is odd in ``batch``, once for each kind in a run."""
        if batch.images.pixels.device.type != "cpu" or any(t.boxes.device.type != "cpu" for t in batch.targets):
            return
        for kind in tuple(self._kinds):
            found = kind(batch)
            if found:
                logger.warning("step %d: %s", step, found)
            if found is not None:
                self._kinds.remove(kind)

    def _misfit(self, batch: Batch) -> str | None:
        """Asked of the first batch with an object."""
        boxes = torch.cat([target.boxes for target in batch.targets])
        if not len(boxes):
            return None
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt().numpy()
        return next(filter(None, (misfit(a, sides, max(batch.images.padded_size)) for a in self._anchors)), "")


def _black(batch: Batch) -> str | None:
    pixels = batch.images.pixels
    if pixels[..., ::_SAMPLED, ::_SAMPLED].max() >= BLACK or (high := float(pixels.max())) >= BLACK:
        return None
    return (
        f"no pixel of the batch is above {high:g} of 255: black images, or divided by 255 before; {_names(batch)}; "
        "told once"
    )


def _relative_box(batch: Batch) -> str | None:
    """A box within the first pixel of its file that no border has cut: there it would touch 0."""
    for target, meta in zip(batch.targets, batch.images.meta, strict=True):
        scale = max(1.0, *(side / original for side, original in zip(meta.size, meta.original_size, strict=True)))
        small = (target.boxes <= scale).all(dim=1) & (target.boxes[:, :2] > 0).all(dim=1)
        for i in small.nonzero().flatten().tolist():
            box = [round(v, 4) for v in target.boxes[i].tolist()]
            return (
                f"box {i} of image {meta.image_id} ({meta.file}) lies within the first pixel: {box} px of "
                f"{meta.size[1]} x {meta.size[0]}; is it in shares of the image (0..1)? Told once"
            )
    return None


def _names(batch: Batch) -> str:
    named = [f"{meta.image_id} ({meta.file})" for meta in batch.images.meta[:3]]
    return f"images {', '.join(named)}" + (", ..." if len(batch) > 3 else "")
