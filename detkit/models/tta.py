"""Test-time augmentation: one detector looks at several views of each image, and what it finds there is merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from detkit.config import TTA, Count, Share
from detkit.matching import NMS, Fate, Merge, merge_views
from detkit.matching.trace import brought_back, record_removed
from detkit.models.interfaces import Detector
from detkit.structures import Affine, Detections, ImageMeta, Images, Losses, SizeRange, Target, size_ranges
from detkit.structures.boxes import clip


class View(NamedTuple):
    """One look at the images of a batch: at ``scale`` times their size, mirrored or not.

    Of what is found there, boxes whose size sqrt(w h), px of the original image, lies in ``sizes`` are kept; None keeps
    all.
    """

    scale: float
    flip: bool
    sizes: SizeRange | None


@TTA
class MultiView(Detector):
    """Runs any detector on several views of each image, resized and mirrored, and merges what it finds.

    Losses are the detector's own: they are those of the image as it is.

    Args:
        detector: the detector (run time).
        size_divisor: padding makes height and width of a view multiples of this, as the loader's does (run time).
        mirror: which landmark each one is in a mirror image (run time); () where nobody knows their names, and
            mirrored views then have none.
        scales: factors on the network input. An enlarged view shows nothing new: where the files are larger than the
            network input, let the transform make larger images and take scales below 1.
        flip: look at the mirror image too, at every scale.
        merge: what becomes of the detections of all views; null for NMS.
        valid_ranges: for each scale, from and to which size its boxes are kept; sqrt(w h) in px of the original image,
            null for no upper bound (SNIP, Singh and Davis CVPR 2018).
        score_threshold: merged detections must score more. Far below a detector's own threshold, which all have passed:
            WBF and SoftNMS lower scores, and what they leave below 0.001 only costs time.
        max_detections: at most so many for each image, the best; COCO's measures count 100.

    Raises:
        ValueError: a number is out of range, ``valid_ranges`` does not match ``scales``, or ``merge`` counts views
            while ``valid_ranges`` keeps some of them from having a say.
    """

    runtime_arguments = ("detector", "size_divisor", "mirror")

    def __init__(
        self,
        *,
        detector: Detector,
        size_divisor: int = 32,
        mirror: Sequence[int] = (),
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        merge: Merge | None = None,
        valid_ranges: tuple[tuple[float, float | None], ...] | None = None,
        score_threshold: Share = 1e-3,
        max_detections: Count = 100,
    ) -> None:
        super().__init__()
        if not scales or not all(0 < s < math.inf for s in scales):
            raise ValueError(f"scales must be positive numbers, not {list(scales)}")
        if max_detections < 1 or not 0 <= score_threshold <= 1:
            raise ValueError(
                f"need max_detections >= 1 and 0 <= score_threshold <= 1, not {max_detections} and {score_threshold}"
            )
        self.detector = detector
        self.size_divisor, self.mirror = size_divisor, mirror
        self.merge = merge or NMS()
        self.score_threshold = score_threshold
        self.max_detections = max_detections
        sizes = _checked_sizes(valid_ranges, scales, self.merge)
        self.views = [View(s, f, r) for s, r in zip(scales, sizes, strict=True) for f in (False, True)[: 1 + flip]]

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        if targets is not None:
            return self.detector(images, targets)
        found = [self._look(images, view) for view in self.views]
        return [self._merged(of_image) for of_image in zip(*found, strict=True)]

    def extra_repr(self) -> str:
        """The views in words."""
        scales = ", ".join(f"{s:g}" for s in dict.fromkeys(view.scale for view in self.views))
        flips = ", each mirrored too" if any(view.flip for view in self.views) else ""
        views = f"{len(self.views)} view{'s' * (len(self.views) > 1)} of each image (scales {scales}{flips})"
        return f"{views}, merged by {type(self.merge).__name__}"

    def _look(self, images: Images, view: View) -> list[Detections]:
        """What the detector finds in one view of each image, in px of ``images``."""
        seen = see(images, view.scale, view.flip, self.size_divisor)
        try:
            size = images.sizes[0]  # a trace is of one image
            with brought_back(_to_view(size, seen.sizes[0], view.flip), size):
                found = self.detector(seen)
        except ValueError as error:
            if view.scale == 1:
                raise
            h, w = seen.padded_size
            raise ValueError(
                f"the detector refuses images at scale {view.scale:g}, {h} x {w} px: {error}. "
                "A detector that insists on one input size cannot be used with scales: tta.scales=[1]"
            ) from error
        metas = zip(images.meta, seen.meta, strict=True)
        return [_brought_back(f, meta, there, view, self.mirror) for f, (meta, there) in zip(found, metas, strict=True)]

    def _merged(self, views: Sequence[Detections]) -> Detections:
        return merge_views(self.merge, views, score_threshold=self.score_threshold, limit=self.max_detections)


def see(images: Images, scale: float, flip: bool, size_divisor: int) -> Images:
    """``images`` at ``scale`` times their size, mirrored or not, padded at the right and bottom with 0.

    Each image is resized and mirrored within its own borders. The whole batch is scaled too, and then padded to
    multiples of ``size_divisor``: a square one stays square. Pixels become float32 if they are resized; the metas tell
    the new sizes and the way back to the original images.
    """
    if scale == 1 and not flip:
        return images
    sizes = [(_scaled(h, scale), _scaled(w, scale)) for h, w in images.sizes]
    old, padded_size = images.pixels, images.padded_size
    if scale != 1:
        old = old.float()
        padded_size = [-(-_scaled(side, scale) // size_divisor) * size_divisor for side in padded_size]
    pixels = old.new_zeros(len(images), 3, *padded_size)
    for i, ((h, w), size) in enumerate(zip(images.sizes, sizes, strict=True)):
        image = _resize(old[i, :, :h, :w], size)
        pixels[i, :, : size[0], : size[1]] = image.flip(2) if flip else image
    metas = [_moved(meta, size, flip) for meta, size in zip(images.meta, sizes, strict=True)]
    return Images(pixels, tuple(metas))


def _scaled(side: int, scale: float) -> int:
    return max(1, round(side * scale))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``image`` (3, h, w) at ``size``, as the loader resizes: bilinear, which would skip pixels below half the size."""
    h, w = image.shape[1:]
    if size == (h, w):
        return image
    antialias = max(h / size[0], w / size[1]) > 2
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=antialias)[0]


def _moved(meta: ImageMeta, size: tuple[int, int], flip: bool) -> ImageMeta:
    affine = None if meta.affine is None else meta.affine.then(_to_view(meta.size, size, flip))
    return replace(meta, size=size, affine=affine)


def _to_view(size: tuple[int, int], seen_size: tuple[int, int], flip: bool) -> Affine:
    """The way from an image of ``size`` (h, w) in the network input to its view of ``seen_size``."""
    scaled = Affine(scale_x=seen_size[1] / size[1], scale_y=seen_size[0] / size[0])
    return scaled.then(Affine(scale_x=-1.0, shift_x=float(seen_size[1]))) if flip else scaled


def _brought_back(found: Detections, meta: ImageMeta, seen: ImageMeta, view: View, mirror: Sequence[int]) -> Detections:
    """What was ``found`` in a view of one image, in px of the network input, without the sizes left to other views.

    ``meta`` is that of the image in the network input, ``seen`` that of the view; ``mirror``: see
    :meth:`detkit.structures.Detections.undone`.
    """
    found = found.undone(_to_view(meta.size, seen.size, view.flip), mirror)
    found = replace(found, boxes=clip(found.boxes, meta.size))
    if view.sizes is None:
        return found
    if meta.affine is None:
        raise ValueError(f"{meta.file}: valid_ranges count px of the original image, but meta.affine is missing")
    own = view.sizes.holds(meta.affine.undo(found.boxes))
    record_removed(found.select(~own), Fate.TOO_SMALL)
    return found.select(own)


def _checked_sizes(
    ranges: Sequence[tuple[float, float | None]] | None, scales: Sequence[float], merge: Merge
) -> Sequence[SizeRange | None]:
    """The sizes to keep, scale by scale."""
    sizes = size_ranges(ranges, len(scales), "scales")
    if sizes is None:
        return [None] * len(scales)
    if merge.counts_views:
        raise ValueError(
            f"valid_ranges leave each size to some of the views, but {type(merge).__name__} scores a box by how many "
            "of all views found it; merge by NMS or SoftNMS"
        )
    return sizes
