"""The verbs of a detector. A class is either abstract (these) or final: variation is composition, not overriding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from detkit.matching import Assignment
from detkit.structures import Detections, FeatureSpec, Images, Losses, PixelStats, Target
from detkit.structures.boxes import paired_iou


class Detector(nn.Module, ABC):
    """Images in; losses or detections out, and the arguments decide which, not ``self.training``."""

    @abstractmethod
    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        """With ``targets`` (one per image) the losses, without them the detections in px of the network input."""


class Backbone(nn.Module, ABC):
    """Turns normalised pixels (B, 3, H, W) into feature maps (B, C_l, H / s_l, W / s_l), fine to coarse.

    ``out_spec`` tells their channels and strides, compared with a map of a small image when a detector is built;
    ``pixel_stats`` the statistics that its weights were trained with; ``example_size`` the only size (H, W) px of
    images that it takes, None for any. ``num_branches``: how often its maps hold the batch, each time seen in another
    way (TridentNet), which the head must know of.
    """

    out_spec: FeatureSpec
    pixel_stats: PixelStats
    example_size: tuple[int, int] | None = None
    num_branches: int = 1

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]: ...


class Neck(nn.Module, ABC):
    """Turns pixels into a pyramid: it runs the backbone, once (FPN) or at several scales (an image pyramid)."""

    out_spec: FeatureSpec

    @abstractmethod
    def forward(self, pixels: Tensor, backbone: nn.Module) -> list[Tensor]: ...


class Head(nn.Module, ABC):
    """Owns its loss and its decoding. Feature maps arrive fine to coarse, as ``in_spec`` of its constructor told.

    ``reads``: the numbers of those maps that it reads, None for all. ``num_branches``: how often the maps may hold the
    batch (see :class:`Backbone`), None for any number. ``trains_features``: whether backbone and neck learn from it.
    """

    reads: tuple[int, ...] | None = None
    num_branches: int | None = 1
    trains_features: bool = True

    @abstractmethod
    def loss(self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]) -> Losses:
        """The terms of the loss of a batch, each divided by its own count, so that they can be added.

        Args:
            features: the neck's maps (B, C, H, W), finest first.
            images: padded, with the size of each.
            targets: of each image, boxes in px of the network input.
        """

    @abstractmethod
    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """What is found in each image, best first, boxes in px of the network input and inside the image."""


class AssigningHead(ABC):
    """A head whose references answer for objects by geometry alone: what the audit can ask before any training.

    A head that assigns by what it predicts is none. ``levels``: the maps, of those it is given, on whose cells its
    references stand, as many on each cell; they follow each other level by level.
    """

    levels: tuple[int, ...]

    @abstractmethod
    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """Which of the head's references answers for which object of each image; the loss uses this very function.

        Args:
            shapes: (h, w) of each map that the head is given.
        """


class References(NamedTuple):
    """The M references of an image, in an order that its size alone decides.

    ``matched`` (M,) int64: the object that each answers for, an index into the Target, below 0 for none; ``boxes``
    (M, 4) px of the network input, None for references that are no boxes; ``levels`` (M,) int64, which of the
    ``num_levels`` each stands on, finest first.
    """

    matched: Tensor
    boxes: Tensor | None
    levels: Tensor
    num_levels: int


class Wording(NamedTuple):
    """How readers are told of references.

    ``headline``: what is asked of them; ``owner``: who has them; ``noun``: what one with a box is called; ``level``:
    what the number of a level counts; ``meaning``: what one is, and when it answers, in whole sentences.
    """

    headline: str
    owner: str
    noun: str
    level: str
    meaning: str


class AnsweringDetector(ABC):
    """A detector whose references answer for objects by geometry alone, and what the audit asks it before any training.

    One with a head that does (:class:`AssigningHead`) need not be one itself; one that is made otherwise may.
    """

    @property
    @abstractmethod
    def wording(self) -> Wording:
        """The words for its references."""

    @abstractmethod
    def references(self, images: Images, targets: Sequence[Target]) -> list[References]:
        """Of each image, which of its references answers for which object, as training counts it."""

    @abstractmethod
    def level_value(self, level: int) -> float:
        """The number of ``level``, counted from the finest one, in what the wording names."""

    def overlaps(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """How much ``boxes`` (..., 4) of references overlap ``objects`` (..., 4), px, as the assignment measures it."""
        return paired_iou(boxes, objects)

    def why_none(self, box: Sequence[float], size: tuple[int, int]) -> str:
        """Why the object ``box`` (x1 y1 x2 y2 px), alone in an image of ``size`` (h, w), has no reference, if known."""
        return ""

    def misfit(self, sides: np.ndarray, long_side: float) -> str:
        """A line where all references are of another order of size than the objects or the image; empty else.

        Args:
            sides: (N,) of the objects, the root of their area, px of the network input.
            long_side: of the largest image, in the same px.
        """
        return ""

    def alternatives(self, boxes: Tensor) -> Iterator[tuple[Mapping[str, Any], str]]:
        """Other values for the detector's arguments, and what they change in words, that may help objects without a
        reference, ``boxes`` (N, 4) px of the network input, N > 0."""
        yield from ()


class ProposalHead(nn.Module, AssigningHead):
    """First stage of a two-stage detector: where something is, whatever it is."""

    @abstractmethod
    def propose(self, features: Sequence[Tensor], images: Images) -> list[Tensor]:
        """Boxes (P, 4) px of the network input for each image, best first, without gradient."""

    @abstractmethod
    def loss(
        self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]
    ) -> tuple[Losses, list[Tensor]]:
        """The losses, and the proposals for training."""


class RegionHead(nn.Module, ABC):
    """Second stage: what stands in each proposal, and where exactly."""

    @abstractmethod
    def loss(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], images: Images, targets: Sequence[Target]
    ) -> Losses:
        """The terms of the loss over ``proposals``, (R_i, 4) px of each image, of which it draws its own samples."""

    @abstractmethod
    def predict(self, features: Sequence[Tensor], proposals: Sequence[Tensor], images: Images) -> list[Detections]:
        """What is found in ``proposals``, (R_i, 4) px of each image, best first and inside the image."""


class RegionPool(nn.Module, ABC):
    """Turns boxes into grids of equal size, read from the maps of a pyramid.

    ``resolution``: side of the grid. ``num_levels``: how many of the maps, the finest, it reads. ``num_moves``: of a
    position-sensitive pool, how many maps it wants behind the others for each of these, to move the bins by.
    """

    resolution: int
    num_levels: int
    num_moves: int = 0

    @abstractmethod
    def out_channels(self, channels: int) -> int:
        """Channels of the grids that are read from maps of ``channels``."""

    @abstractmethod
    def levels(self, boxes: Tensor) -> Tensor:
        """The level (R,) int64 that each of ``boxes`` (R, 4) px is read from."""

    @abstractmethod
    def forward(self, features: Sequence[Tensor], regions: Sequence[Tensor], images: Images) -> Tensor:
        """Grids (R, C, resolution, resolution).

        Args:
            features: maps (B, C, H_l, W_l), of which the first ``num_levels`` are read.
            regions: boxes (R_i, 4) px of the network input for each image; R is all of them, in turn.
        """


class RawRegions(NamedTuple):
    """For R regions: ``logits`` (R, O) float32 and ``deltas`` (R, K or 1, 4)."""

    logits: Tensor
    deltas: Tensor


class RegionNetwork(nn.Module, ABC):
    """What the second stage makes of a region: maps that a pool reads, then an answer to each grid.

    A factory (``_partial_: true``): the head gives it the ``pool`` whose grids it will see and the ``cls_loss`` that
    makes its last layer. ``takes_classes``: its logits can be had of some classes alone, ``network(pooled, classes)``.
    """

    runtime_arguments = ("pool", "cls_loss")
    takes_classes: bool = False

    @abstractmethod
    def maps(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the pool reads, from the features of its levels (B, C, H_l, W_l): these themselves, or score maps."""

    @abstractmethod
    def forward(self, pooled: Tensor) -> RawRegions:
        """The raw outputs for grids (R, C', resolution, resolution) of :meth:`maps`."""
