"""What a recipe is made from, and the recipes of the house that it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from detkit.app.recipe.findings import Findings
from detkit.app.recipe.speed import Speeds

#: The detectors that a recipe chooses between, by the presets of their models; the first wins unless data or time say
#: otherwise.
DETECTORS = ("faster_rcnn_fpn", "centernet")

#: Longer sides of the network input, px. All but the last steps have about half as many pixels again as the one before.
SIZES = (128, 160, 192, 224, 256, 320, 416, 512, 640, 800, 1024, 1280)


class Choice(NamedTuple):
    """A line of the file: a dotted ``key`` or, from a slash on, a group; its ``value``; and why."""

    key: str
    value: Any
    reason: str


class View(NamedTuple):
    """What the network sees of an image: the whole of it, its longer side ``size`` px; or, where it ``is_tile``, tiles
    of ``size`` px cut out of it."""

    size: int
    is_tile: bool = False

    @property
    def scale(self) -> int | None:
        """The longer side that an image is resized to; None where it stays as it is."""
        return None if self.is_tile else self.size


@dataclass(frozen=True, slots=True)
class Given:
    """Data, time and computer. ``is_pretrained``: whether ImageNet's weights are to be had; ``is_declined``: whether
    they are not because nobody wants them."""

    findings: Findings
    minutes: float
    device: Literal["cpu", "cuda"]
    is_pretrained: bool
    is_declined: bool = False

    @property
    def backbone(self) -> str:
        """The preset of the backbone: ResNet-50 on GPUs, and half a ResNet-18 without weights to start from."""
        if not self.is_pretrained:
            return "resnet18_narrow"
        return "resnet50" if self.device == "cuda" else "mobilenetv2"

    def megapixels(self, view: View) -> float:
        """Of a training image."""
        return view.size**2 / 1e6 if view.is_tile else self.findings.megapixels(view.size)


@dataclass(frozen=True, slots=True)
class Basis:
    """A recipe of the house that was run, whose numbers hold for a detector; ``source`` with what it reached."""

    source: str
    batch_size: int
    lr: float
    clip_norm: float
    warmup_steps: int
    values: Mapping[str, Any]


_NARROW = {"head.rpn.sampler.num": 128, "head.rpn.num_before_nms": [300, 200], "head.rpn.num_proposals": [300, 100]}

_BASES = {
    ("faster_rcnn_fpn", True): Basis(
        "faster_rcnn/bccd_mobilenetv2_fpn (AP 0.591 on bccd)", 2, 2e-4, 10.0, 100, {"neck.out_channels": 128}
    ),
    ("faster_rcnn_fpn", False): Basis(
        "quickstart (AP 0.628 on generated shapes)", 4, 1e-3, 5.0, 50,
        {"neck.out_channels": 64, **_NARROW, "head.roi.network.hidden": [256, 256]},
    ),
    ("centernet", True): Basis(
        "centernet/bccd_mobilenetv2 (AP 0.581 on bccd)", 2, 5e-4, 10.0, 100,
        {"neck.channels": [128, 96, 64], "head.init_std": None, "head.size_weight": 0.5},
    ),
    ("centernet", False): Basis(
        "centernet/shapes (AP 0.571 on generated shapes)", 8, 2e-3, 35.0, 50,
        {"neck.channels": [128, 64, 64], "head.init_std": None, "head.size_weight": 0.5},
    ),
}  # fmt: skip


def basis_of(detector: str, is_pretrained: bool) -> Basis:
    """The recipe whose numbers hold for ``detector``."""
    return _BASES[detector, is_pretrained]


@dataclass(frozen=True, slots=True)
class Fits:
    """Shares of the objects that no anchor overlaps by half, by the anchors' scales (and with more ratios, for the
    chosen ones); empty for a detector without anchors."""

    by_scales: Mapping[tuple[float, ...], float]
    by_ratios: Mapping[tuple[float, ...], float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured for a recipe beside the data themselves."""

    speeds: Speeds
    fits: Fits
