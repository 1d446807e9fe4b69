"""TridentNet's training and test (Li et al., ICCV 2019, sections 4.2 and 4.3): one head for several branches.

A backbone with ``trident`` gives maps that hold the batch once for each branch. Here each branch is a batch of the same
images, of which it learns and finds the objects of its sizes alone; detections of all branches then go through NMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detkit.config import HEADS
from detkit.matching import IGNORED, Assignment, Selector
from detkit.models.heads.common import assigning, select_of_views
from detkit.models.interfaces import AssigningHead, Head
from detkit.structures import Detections, ImageMeta, Images, Losses, SizeRange, Target, size_ranges
from detkit.utils.seed import derive_key


@HEADS
class TridentHead(Head, AssigningHead):
    """Any head, shared by all branches; each has objects of its own sizes and draws samples of its own.

    With a backbone of one branch it is the inner head and has no ranges: ``model.backbone.trident=[2]`` is the paper's
    fast inference, of the middle branch alone, on weights that were trained with three.

    Args:
        inner: the head that all branches share.
        selector: NMS over the detections of all branches.
        valid_ranges: for each branch [from, to], the sizes of its objects, sqrt(w h) in px of the network input, null
            for no upper bound. null lets each branch learn and find all, as fast inference wants it (section 4.3).
        of_original: these are px of the original image, as in the authors' program (simpledet, valid_ranges_on_origin);
            a picture that the transforms have put together of several is its own original.
    """

    def __init__(
        self,
        *,
        inner: Head,
        selector: Selector,
        valid_ranges: tuple[tuple[float, float | None], ...] | None = ((0, 90), (30, 160), (90, None)),
        of_original: bool = False,
    ) -> None:
        super().__init__()
        self.inner, self.selector = inner, selector
        self.reads = inner.reads
        num = 0 if valid_ranges is None else len(valid_ranges)
        self.num_branches = num or None
        self.valid_ranges, self.of_original = size_ranges(valid_ranges, num, "branches"), of_original
        self.levels = inner.levels if isinstance(inner, AssigningHead) else ()

    def loss(self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]) -> Losses:
        num = len(features[0]) // len(images)
        return self.inner.loss(features, self.seen(images, num), [*targets] * num)

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        num = len(features[0]) // len(images)
        found = self.inner.predict(features, self.seen(images, num))
        if num == 1:
            return found
        return [select_of_views(self.selector, found[i :: len(images)], size) for i, size in enumerate(images.sizes)]

    def seen(self, images: Images, num: int) -> Images:
        """``images`` once for each of ``num`` branches, with the sizes that count there and a key of their own."""
        if num == 1:
            return images
        metas = [self._in_branch(meta, i) for i in range(num) for meta in images.meta]
        return Images(images.pixels.repeat(num, 1, 1, 1), tuple(metas))

    def range_of(self, branch: int, scale: float | None) -> SizeRange | None:
        """The sizes that count in ``branch``, px of the network input; None where its image says.

        Args:
            scale: by how much the input is larger than the original; None where there is none.
        """
        if self.valid_ranges is None:
            return None
        own = self.valid_ranges[branch]
        return own.scaled(scale) if self.of_original and scale is not None else own

    def _in_branch(self, meta: ImageMeta, branch: int) -> ImageMeta:
        sizes = self.range_of(branch, None if meta.affine is None else meta.affine.scale)
        return replace(meta, key=derive_key(meta.key, 0, branch), valid_range=sizes or meta.valid_range)

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """What answers for an object in any of the branches; a reference that has one there is no background here."""
        num = self.num_branches or 1
        found = assigning(self.inner).assign(shapes, self.seen(images, num), [*targets] * num)
        return [_of_any(found[i :: len(images)]) for i in range(len(images))]


def _of_any(branches: Sequence[Assignment]) -> Assignment:
    """The first object that a reference has in one of the ``branches``; else background where it is that in one."""
    matched = torch.full_like(branches[0].matched, IGNORED)
    for assignment in reversed(branches):
        matched = torch.where(
            assignment.positive | ((matched == IGNORED) & assignment.negative), assignment.matched, matched
        )
    return Assignment(matched)
