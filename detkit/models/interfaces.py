"""The verbs of a detector. A class is either abstract (these) or final: variation is composition, not overriding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from detkit.matching import Assignment
from detkit.structures import Detections, FeatureSpec, Images, Losses, PixelStats, Target


class Detector(nn.Module, ABC):
    """Images in; losses or detections out, and the arguments decide which, not ``self.training``."""

    @abstractmethod
    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        """With ``targets`` (one per image) the losses, without them the detections in px of the network input."""


class Backbone(nn.Module, ABC):
    """Turns normalised pixels (B, 3, H, W) into feature maps (B, C_l, H / s_l, W / s_l), fine to coarse.

    ``out_spec`` tells their channels and strides, compared with a map of a small image when a detector is built;
    ``pixel_stats`` the statistics that its weights were trained with; ``example_size`` the only size (H, W) px of
    images that it takes, None for any.
    """

    out_spec: FeatureSpec
    pixel_stats: PixelStats
    example_size: tuple[int, int] | None = None

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]: ...


class Neck(nn.Module, ABC):
    """Turns pixels into a pyramid: it runs the backbone, once (FPN) or at several scales (an image pyramid)."""

    out_spec: FeatureSpec

    @abstractmethod
    def forward(self, pixels: Tensor, backbone: nn.Module) -> list[Tensor]: ...


class Head(nn.Module, ABC):
    """Owns its loss and its decoding. Feature maps arrive fine to coarse, as ``in_spec`` of its constructor told."""

    @abstractmethod
    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """Which of the head's references answers for which object of each image; the loss uses this very function.

        Args:
            shapes: (h, w) of the map of each level. No feature is needed: the answer depends on geometry alone.
        """

    @abstractmethod
    def loss(self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]) -> Losses: ...

    @abstractmethod
    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]: ...


class ProposalHead(nn.Module, ABC):
    """First stage of a two-stage detector: where something is, whatever it is."""

    @abstractmethod
    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """As :meth:`Head.assign`."""

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
    ) -> Losses: ...

    @abstractmethod
    def predict(self, features: Sequence[Tensor], proposals: Sequence[Tensor], images: Images) -> list[Detections]: ...
