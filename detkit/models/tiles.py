"""Large images tile by tile: small objects keep their pixels, and memory is that of a few tiles (as SAHI does it).

SAHI (Akyon, Altinuc, Temizel, ICIP 2022) runs a detector on overlapping slices and on the whole image made small, and
merges what it finds. The slices here are SAHI's. Beyond it: a box that an inner border of its tile has cut goes where
another view has the object whole, so that no half of it is left to be merged. A whole box that scores much less than
the cut one is no such view: a false alarm that lies over an object, or a whole image too small to tell, would take a
sure detection with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.config import TTA, Count, Share
from detkit.matching import NMS, Merge, merge_views
from detkit.matching.trace import active_trace, brought_back
from detkit.models.interfaces import Detector
from detkit.structures import Affine, Detections, ImageMeta, Images, Losses, Target
from detkit.structures.boxes import clip, pairwise_cover

#: A box that comes as near to an inner border of its tile as this, px, is taken to be cut by it.
_BORDER = 2.0

#: A cut box is part of a whole one of its class that covers as much of it.
_COVERED = 0.7

#: And it goes for the whole one if that scores this share of its score or more. Where both stay, the merge decides.
_BELIEVED = 0.5


@dataclass(frozen=True, slots=True)
class _View:
    """What was found in one view of an image: in px of the image, and which of the boxes (D,) an inner border cut."""

    found: Detections
    cut: Tensor


@TTA
class Tiles(Detector):
    """Runs any detector on overlapping tiles of each image and on the whole of it made small; merges what it finds.

    Losses are the detector's own. Tiles are cut out of the network input: ``transform.val`` must leave images their
    size (``transform=identity``), or what it has made small stays small.

    Args:
        detector: the detector (run time).
        size_divisor: tiles are padded to multiples of this (run time).
        tile: side of a tile, px; an image that is smaller is one tile.
        overlap: of neighbouring tiles, as a share of their side. An object larger than that may be whole in none.
        whole: look at the whole image too, its longer side at most ``tile`` px: for objects larger than a tile.
        batch_size: tiles that go through the detector together.
        merge: what becomes of the detections of all views; null for NMS. WBF takes all views for one: a score is the
            mean of those of the boxes that fused.
        score_threshold: merged detections must score more.
        max_detections: at most so many for each image, the best; COCO's measures count 100.

    Raises:
        ValueError: ``overlap`` is 1: tiles would not move on.
    """

    runtime_arguments = ("detector", "size_divisor")

    def __init__(
        self,
        *,
        detector: Detector,
        size_divisor: int = 32,
        tile: Count = 640,
        overlap: Share = 0.2,
        whole: bool = True,
        batch_size: Count = 4,
        merge: Merge | None = None,
        score_threshold: Share = 1e-3,
        max_detections: Count = 300,
    ) -> None:
        super().__init__()
        if int(overlap * tile) >= tile:
            raise ValueError(f"overlap must be below 1, not {overlap}: tiles would not move on")
        self.detector, self.size_divisor = detector, size_divisor
        self.tile, self.overlap, self.whole, self.batch_size = tile, overlap, whole, batch_size
        self.merge = merge or NMS()
        self.score_threshold, self.max_detections = score_threshold, max_detections

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        if targets is not None:
            return self.detector(images, targets)
        return [self._of_image(images.pixels[i], meta) for i, meta in enumerate(images.meta)]

    def extra_repr(self) -> str:
        """The views in words."""
        whole = " and the whole image made small," if self.whole else ""
        return f"tiles of {self.tile} px, overlap {self.overlap:g},{whole} merged by {type(self.merge).__name__}"

    def _of_image(self, pixels: Tensor, meta: ImageMeta) -> Detections:
        views = list(self._tiles(pixels, meta))
        if self.whole and len(views) > 1:
            views.append(self._whole(pixels, meta))
        return merge_views(
            self.merge, [without_cut(views)], seen=[v.found for v in views],
            score_threshold=self.score_threshold, limit=self.max_detections,
        )  # fmt: skip

    def _tiles(self, pixels: Tensor, meta: ImageMeta) -> Iterator[_View]:
        boxes = slices(meta.size, (self.tile, self.tile), (self.overlap, self.overlap))
        together = self.batch_size if active_trace() is None else 1  # a trace is of one image
        for first in range(0, len(boxes), together):
            some = boxes[first : first + together]
            with brought_back(_to_tile(some[0]), meta.size):
                of_tiles = self.detector(self._cut_out(pixels, meta, some))
            for found, box in zip(of_tiles, some, strict=True):
                moved = found.undone(_to_tile(box))
                yield _View(moved, is_cut(moved.boxes, box, meta.size))

    def _cut_out(self, pixels: Tensor, meta: ImageMeta, boxes: Sequence[tuple[int, int, int, int]]) -> Images:
        """The tiles ``boxes`` as a batch; all are of one size, since the last ones are moved back into the image."""
        x1, y1, x2, y2 = boxes[0]
        size = (y2 - y1, x2 - x1)
        batch = pixels.new_zeros(len(boxes), 3, *(_padded(side, self.size_divisor) for side in size))
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            batch[i, :, : size[0], : size[1]] = pixels[:, y1:y2, x1:x2]
        metas = [_seen(meta, size, _to_tile(b)) for b in boxes]
        return Images(batch, tuple(metas))

    def _whole(self, pixels: Tensor, meta: ImageMeta) -> _View:
        h, w = meta.size
        scale = min(1.0, self.tile / max(h, w))
        size = (max(1, round(h * scale)), max(1, round(w * scale)))
        batch = torch.zeros(1, 3, *(_padded(side, self.size_divisor) for side in size), device=pixels.device)
        for channel in range(3):  # one by one: a third of the memory
            plane = pixels[None, channel : channel + 1, :h, :w].float()
            small = F.interpolate(plane, size=size, mode="bilinear", align_corners=False, antialias=True)
            batch[0, channel, : size[0], : size[1]] = small[0, 0]
        there = Affine(scale_x=size[1] / w, scale_y=size[0] / h)
        with brought_back(there, meta.size):
            (found,) = self.detector(Images(batch, (_seen(meta, size, there),)))
        found = found.undone(there)
        found = replace(found, boxes=clip(found.boxes, meta.size))
        return _View(found, torch.zeros_like(found.labels, dtype=torch.bool))


def slices(
    size: tuple[int, int], tile: tuple[int, int], overlap: tuple[float, float]
) -> list[tuple[int, int, int, int]]:
    """The tiles x1 y1 x2 y2 of an image, row by row: SAHI's ``get_slice_bboxes``.

    Args:
        size: (h, w) of the image.
        tile: (h, w).
        overlap: of neighbours, as shares of the tile's height and width; the last of a row or column are moved back
            into the image and overlap more.
    """
    rows, columns = (_spans(size[i], tile[i], int(overlap[i] * tile[i])) for i in (0, 1))
    return [(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    spans, start, end = [], 0, 0
    while end < length:
        end = start + tile
        last = min(end, length)
        spans.append((max(0, last - tile), last))
        start = end - overlap
    return spans


def is_cut(boxes: Tensor, tile: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """Which of ``boxes`` (D, 4) px of the image reach a border of their ``tile`` that is none of the image's."""
    x1, y1, x2, y2 = tile
    h, w = size
    cut = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for column, border, at_edge in ((0, x1, x1 == 0), (1, y1, y1 == 0), (2, x2, x2 == w), (3, y2, y2 == h)):
        if not at_edge:
            cut |= (boxes[:, column] - border).abs() <= _BORDER
    return cut


def without_cut(views: Sequence[_View]) -> Detections:
    """The detections of all ``views``, without the cut ones that are parts of whole ones of other views.

    A cut box is one if a whole box of its class covers 0.7 of it and scores at least half as much; two boxes of one
    view are two objects to the detector. No score changes.
    """
    found = Detections.join([v.found for v in views])
    cut = torch.cat([v.cut for v in views])
    of_view = torch.cat([torch.full_like(v.found.labels, i) for i, v in enumerate(views)])
    parts, wholes = cut.nonzero().squeeze(1), (~cut).nonzero().squeeze(1)
    if len(parts) == 0 or len(wholes) == 0:
        return found
    keep = torch.ones_like(cut)
    for some in parts.split(1024):
        covered = pairwise_cover(found.boxes[some], found.boxes[wholes]) >= _COVERED
        covered &= found.labels[some][:, None] == found.labels[wholes]
        covered &= of_view[some][:, None] != of_view[wholes]
        covered &= found.scores[wholes] >= _BELIEVED * found.scores[some][:, None]
        keep[some] = ~covered.any(dim=1)
    return found.select(keep)


def _seen(meta: ImageMeta, size: tuple[int, int], there: Affine) -> ImageMeta:
    return replace(meta, size=size, affine=None if meta.affine is None else meta.affine.then(there))


def _to_tile(box: tuple[int, int, int, int]) -> Affine:
    return Affine(shift_x=-float(box[0]), shift_y=-float(box[1]))


def _padded(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor
