"""What a head's own assigner gives each object, asked without running a network."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit.config import ConfigError
from detkit.matching import Anchors, Assignment, misfit
from detkit.models import AssigningHead, ComposedDetector, Detector
from detkit.structures import Batch, Images, Target
from detkit.structures.boxes import paired_iou


class Assigned(NamedTuple):
    """For the N objects of an image: ``counts`` (N, L) int64, the references of each level that answer for each object,
    and ``fit`` (N,), the best IoU of these with it; 1 where references are no boxes, 0 without a reference."""

    counts: Tensor
    fit: Tensor


class Planner:
    """Asks a detector's head for assignments, without running the detector.

    Raises:
        ConfigError: the detector has no head that assigns.
    """

    def __init__(self, detector: Detector) -> None:
        head = getattr(detector, "head", None)
        if not isinstance(detector, ComposedDetector):
            raise ConfigError(
                f"model: {type(detector).__name__} has no head that assigns references to objects: nothing to audit"
            )
        if not isinstance(head, AssigningHead):
            raise ConfigError(
                f"model.head: {type(head).__name__} assigns by what it predicts, not by where objects are: there is "
                "nothing to audit before training"
            )
        self.head: AssigningHead = head
        self._anchors = _anchors_of(head)
        self.out_spec = detector.neck.out_spec
        self.strides = self.out_spec.select(head.levels).strides
        self._neck, self._backbone = detector.neck, detector.backbone
        self._shapes: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._on_meta: tuple[torch.nn.Module, torch.nn.Module] | None = None

    def with_head(self, head: AssigningHead) -> Planner:
        """The same neck and backbone with another head."""
        other = copy.copy(self)
        other.head, other._anchors = head, _anchors_of(head)
        other.strides = self.out_spec.select(head.levels).strides
        return other

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(h, w) of the map of each level for a batch of ``size`` (h, w): a pass that moves no numbers."""
        if size not in self._shapes:
            if self._on_meta is None:
                neck, backbone = (copy.deepcopy(module).to("meta").eval() for module in (self._neck, self._backbone))
                self._on_meta = neck, backbone
            neck, backbone = self._on_meta
            with torch.no_grad():
                maps = neck(torch.empty(1, 3, *size, device="meta"), backbone)
            self._shapes[size] = [(m.shape[2], m.shape[3]) for m in maps]
        return self._shapes[size]

    def each(self, batches: Sequence[Batch]) -> Iterator[list[Assigned]]:
        """:meth:`assigned` for all ``batches``, each on one of torch's threads.

        The tensors of one image are small: threads that share them wait for each other.
        """
        threads = torch.get_num_threads()
        for batch in batches:
            self.shapes(batch.images.padded_size)  # filled by one thread, read by all
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(lambda batch: self.assigned(batch.images, batch.targets), batches)
        finally:
            torch.set_num_threads(threads)

    def assigned(self, images: Images, targets: Sequence[Target]) -> list[Assigned]:
        """What the head's assigner gives the objects of each image."""
        given = self.shapes(images.padded_size)
        shapes = [given[level] for level in self.head.levels]
        cells = torch.tensor([h * w for h, w in shapes])
        anchors = self._boxes(images.padded_size)
        found = []
        for assignment, target in zip(self.head.assign(given, images, targets), targets, strict=True):
            # whatever a head has on a cell (anchors, boxes), it is as many on all; a pyramid's levels follow each other
            per_cell = len(assignment.matched) // int(cells.sum())
            level = torch.repeat_interleave(torch.arange(len(shapes)), cells * per_cell)
            rows = assignment.positive.nonzero().squeeze(1)
            objects = assignment.matched[rows]
            pairs = objects * len(shapes) + level[rows]
            counts = torch.bincount(pairs, minlength=len(target) * len(shapes)).view(-1, len(shapes))
            fit = torch.zeros(len(target))
            overlap = torch.ones(len(rows)) if anchors is None else paired_iou(anchors[rows], target.boxes[objects])
            found.append(Assigned(counts, fit.scatter_reduce_(0, objects, overlap, "amax")))
        return found

    def misfit(self, sides: np.ndarray, long_side: float) -> str:
        """See :func:`detkit.matching.misfit`; empty for a head without anchors."""
        return "" if self._anchors is None else misfit(self._anchors, sides, long_side)

    def is_crowded_out(self, batch: Batch, i: int, k: int) -> bool:
        """Whether object ``k`` of image ``i``, which has no reference, has one where it is alone."""
        if len(batch.targets[i]) == 1:
            return False
        return bool(self._assign(batch, i, batch.targets[i].select(torch.tensor([k]))).positive.any())

    def seen(self, batch: Batch, i: int, k: int) -> tuple[Tensor | None, int | None]:
        """What stands for object ``k`` of image ``i``, and what stands in its way.

        Returns:
            the anchor (4,) px that overlaps it most, of those that answer for it if there are any, None for a head
            without anchors; and the object that has its reference, None where none has.
        """
        target = batch.targets[i]
        matched = self._assign(batch, i, target).matched
        rows = (matched == k).nonzero().squeeze(1)
        rival = None
        if not len(rows) and self.is_crowded_out(batch, i, k):
            rows = self._assign(batch, i, target.select(torch.tensor([k]))).positive.nonzero().squeeze(1)
            owners = matched[rows]
            rival = int(owners[owners >= 0][0]) if (owners >= 0).any() else None
        anchors = self._boxes(batch.images.padded_size)
        if anchors is None:
            return None, rival
        near = anchors[rows] if len(rows) else anchors
        return near[paired_iou(near, target.boxes[k].expand_as(near)).argmax()], rival

    def _boxes(self, size: tuple[int, int]) -> Tensor | None:
        """The anchors (M, 4) px of all levels for a batch of ``size``; None for a head without any."""
        if self._anchors is None:
            return None
        shapes = self.shapes(size)
        return torch.cat(self._anchors([shapes[level] for level in self.head.levels], torch.device("cpu")))

    def _assign(self, batch: Batch, i: int, target: Target) -> Assignment:
        """The assignment of image ``i`` as if it had the objects of ``target``."""
        one = Images(batch.images.pixels[i : i + 1], batch.images.meta[i : i + 1])
        (assignment,) = self.head.assign(self.shapes(batch.images.padded_size), one, [target])
        return assignment


def _anchors_of(head: AssigningHead) -> Anchors | None:
    """The anchors that ``head`` assigns, wherever in it they are."""
    assert isinstance(head, torch.nn.Module)
    return next((v for m in head.modules() for v in vars(m).values() if isinstance(v, Anchors)), None)
