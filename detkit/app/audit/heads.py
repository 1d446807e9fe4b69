"""A detector with a head that assigns, as one whose references can be asked for."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence

import numpy as np
import torch

from detkit.config import ConfigError
from detkit.matching import Anchors, misfit
from detkit.models import AnsweringDetector, AssigningHead, ComposedDetector, Detector, References, Wording
from detkit.structures import Images, Target


class HeadReferences(AnsweringDetector):
    """What the head of ``detector`` has on the cells of its maps, asked without running the detector.

    Args:
        head: one that learns beside it on the same maps, to be asked instead.

    Raises:
        ConfigError: the detector has no head that assigns.
    """

    def __init__(self, detector: Detector, head: object = None) -> None:
        head = getattr(detector, "head", None) if head is None else head
        if not isinstance(detector, ComposedDetector):
            raise ConfigError(
                f"model: {type(detector).__name__} has no head that assigns references to objects: nothing to audit"
            )
        if not isinstance(head, AssigningHead):
            raise ConfigError(
                f"model.head: {type(head).__name__} assigns by what it predicts, not by where objects are: there is "
                "nothing to audit before training"
            )
        self.out_spec = detector.neck.out_spec
        self._neck, self._backbone = detector.neck, detector.backbone
        self._shapes: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._on_meta: tuple[torch.nn.Module, torch.nn.Module] | None = None
        self._lock = threading.Lock()
        self._take(head)

    def _take(self, head: AssigningHead) -> None:
        self.head, self._anchors = head, _anchors_of(head)
        self.strides = self.out_spec.select(head.levels).strides

    def with_head(self, head: AssigningHead) -> HeadReferences:
        """The same neck and backbone with another head."""
        other = copy.copy(self)
        other._take(head)
        return other

    @property
    def wording(self) -> Wording:
        return Wording(
            headline="What the head can learn from", owner=type(self.head).__name__, noun="anchor", level="stride",
            meaning="A reference is an anchor, a grid cell or a centre cell.",
        )  # fmt: skip

    def references(self, images: Images, targets: Sequence[Target]) -> list[References]:
        given = self._shapes_of(images.padded_size)
        shapes = [given[level] for level in self.head.levels]
        cells = torch.tensor([h * w for h, w in shapes])
        anchors = None if self._anchors is None else torch.cat(self._anchors(shapes, torch.device("cpu")))
        found = []
        for assignment in self.head.assign(given, images, targets):
            # whatever a head has on a cell (anchors, boxes), it is as many on all; a pyramid's levels follow each other
            per_cell = len(assignment.matched) // int(cells.sum())
            levels = torch.repeat_interleave(torch.arange(len(shapes)), cells * per_cell)
            found.append(References(assignment.matched, anchors, levels, len(shapes)))
        return found

    def level_value(self, level: int) -> float:
        """The stride of ``level``, px of the network input."""
        return self.strides[level]

    def misfit(self, sides: np.ndarray, long_side: float) -> str:
        """See :func:`detkit.matching.misfit`; empty for a head without anchors."""
        return "" if self._anchors is None else misfit(self._anchors, sides, long_side)

    def _shapes_of(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(h, w) of the map of each level for a batch of ``size`` (h, w): a pass that moves no numbers."""
        with self._lock:  # batches are asked for by several threads
            if size not in self._shapes:
                if self._on_meta is None:
                    neck, backbone = (copy.deepcopy(m).to("meta").eval() for m in (self._neck, self._backbone))
                    self._on_meta = neck, backbone
                neck, backbone = self._on_meta
                with torch.no_grad():
                    maps = neck(torch.empty(1, 3, *size, device="meta"), backbone)
                self._shapes[size] = [(m.shape[2], m.shape[3]) for m in maps]
            return self._shapes[size]


def _anchors_of(head: AssigningHead) -> Anchors | None:
    """The anchors that ``head`` assigns, wherever in it they are."""
    assert isinstance(head, torch.nn.Module)
    return next((v for m in head.modules() for v in vars(m).values() if isinstance(v, Anchors)), None)
