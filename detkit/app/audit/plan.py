"""Which references answer for each object, asked without running a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.app.audit.flows import FlowReferences
from detkit.app.audit.heads import HeadReferences
from detkit.models import AnsweringDetector, AssigningHead, Detector, References
from detkit.models.heads import FlowHead
from detkit.structures import Batch, FeatureSpec, Images, Target


class Assigned(NamedTuple):
    """For the N objects of an image: ``counts`` (N, L) int64, the references of each level that answer for each object,
    and ``fit`` (N,), the best overlap of these with it; 1 where references are no boxes, 0 without a reference."""

    counts: Tensor
    fit: Tensor


class Planner:
    """Counts the references of a detector, without running it.

    Raises:
        ConfigError: nothing of the detector answers for objects by where they are alone.
    """

    def __init__(self, detector: Detector | AnsweringDetector) -> None:
        self.asked: AnsweringDetector = _asked(detector)

    @property
    def out_spec(self) -> FeatureSpec:
        """Of the neck, for a detector with a head."""
        return self._of_head().out_spec

    @property
    def strides(self) -> tuple[float, ...]:
        """Of the levels, for a detector with a head."""
        return self._of_head().strides

    def with_head(self, head: AssigningHead) -> Planner:
        """The same neck and backbone with another head."""
        return Planner(self._of_head().with_head(head))

    def _of_head(self) -> HeadReferences:
        assert isinstance(self.asked, HeadReferences), "only a head has strides, and can be exchanged"
        return self.asked

    def each(self, batches: Sequence[Batch]) -> Iterator[list[Assigned]]:
        """:meth:`assigned` for all ``batches``, each on one of torch's threads.

        The tensors of one image are small: threads that share them wait for each other.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(lambda batch: self.assigned(batch.images, batch.targets), batches)
        finally:
            torch.set_num_threads(threads)

    def assigned(self, images: Images, targets: Sequence[Target]) -> list[Assigned]:
        """What answers for the objects of each image."""
        pairs = zip(self.asked.references(images, targets), targets, strict=True)
        return [self._counted(references, target) for references, target in pairs]

    def _counted(self, of: References, target: Target) -> Assigned:
        rows = (of.matched >= 0).nonzero().squeeze(1)
        objects = of.matched[rows]
        cells = objects * of.num_levels + of.levels[rows]
        counts = torch.bincount(cells, minlength=len(target) * of.num_levels).view(len(target), of.num_levels)
        fit = torch.zeros(len(target))
        if of.boxes is None:
            overlap = torch.ones(len(rows))
        else:
            overlap = self.asked.overlaps(of.boxes[rows], target.boxes[objects])
        return Assigned(counts, fit.scatter_reduce_(0, objects, overlap, "amax"))

    def is_crowded_out(self, batch: Batch, i: int, k: int) -> bool:
        """Whether object ``k`` of image ``i``, which has no reference, has one where it is alone."""
        return len(batch.targets[i]) > 1 and len(self._alone(batch, i, k)) > 0

    def _alone(self, batch: Batch, i: int, k: int) -> Tensor:
        """The references (R,) of object ``k`` of image ``i`` where it is alone."""
        only = self._ask(batch, i, batch.targets[i].select(torch.tensor([k])))
        return (only.matched >= 0).nonzero().squeeze(1)

    def seen(self, batch: Batch, i: int, k: int) -> tuple[Tensor | None, int | None]:
        """What stands for object ``k`` of image ``i``, and what stands in its way.

        Returns:
            the box (4,) px of the reference that overlaps it most, of those that answer for it if there are any, None
            where references are no boxes or there is none; and the object that has its reference, None where none has.
        """
        target = batch.targets[i]
        references = self._ask(batch, i, target)
        rows = (references.matched == k).nonzero().squeeze(1)
        rival = None
        if not len(rows) and self.is_crowded_out(batch, i, k):
            rows = self._alone(batch, i, k)
            owners = references.matched[rows]
            rival = int(owners[owners >= 0][0]) if (owners >= 0).any() else None
        if references.boxes is None or not len(references.boxes):
            return None, rival
        near = references.boxes[rows] if len(rows) else references.boxes
        return near[self.overlap(near, target.boxes[k]).argmax()], rival

    def overlap(self, boxes: Tensor, of: Tensor) -> Tensor:
        """How much ``boxes`` (N, 4) px of references overlap the object ``of`` (4,), as the assignment measures it."""
        return self.asked.overlaps(boxes, of.expand_as(boxes))

    def _ask(self, batch: Batch, i: int, target: Target) -> References:
        """The references of image ``i`` as if it had the objects of ``target``."""
        one = Images(batch.images.pixels[i : i + 1], batch.images.meta[i : i + 1])
        (references,) = self.asked.references(one, [target])
        return references


def _asked(detector: Detector | AnsweringDetector) -> AnsweringDetector:
    if isinstance(detector, AnsweringDetector):
        return detector
    head = getattr(detector, "head", None)
    return FlowReferences(head) if isinstance(head, FlowHead) else HeadReferences(detector)


def auxiliary(detector: Detector) -> Planner | None:
    """Of the head that learns beside a flow's on the same maps, if it assigns; None for none."""
    head = getattr(detector, "head", None)
    beside = head.auxiliary if isinstance(head, FlowHead) else None
    return Planner(HeadReferences(detector, beside)) if isinstance(beside, AssigningHead) else None
