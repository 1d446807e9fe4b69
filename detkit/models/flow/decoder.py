"""The network that guesses where boxes of noise belong: an iterated decoder over the regions that they cover.

Sparse R-CNN's (Sun et al., CVPR 2021) as DiffusionDet uses it (Chen et al., ICCV 2023, section 3.2), told the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import BOX_DECODERS, Count, Whole
from detkit.losses import ClassificationLoss
from detkit.matching import Coder
from detkit.models.flow.state import StateCoder, whole
from detkit.models.interfaces import RegionPool
from detkit.structures import FeatureSpec, Images
from detkit.utils.precision import widened


class Guess(NamedTuple):
    """What a stage says of N boxes: ``logits`` (B, N, O), at least float32, and ``boxes`` (B, N, 4) px, where they
    belong."""

    logits: Tensor
    boxes: Tensor


@BOX_DECODERS
class BoxDecoder(nn.Module):
    """Stages that each look at the regions of all boxes, let the boxes of an image see each other, and move them.

    A factory (``_partial_: true``): the head gives it ``states``, which bound the boxes, and ``cls_loss``, which makes
    the layers of the classes.

    Args:
        pool, coder: how a region is read, and how four numbers move a box.
        num_stages: stages, each with weights of its own, its boxes being the next one's regions.
        width: of what the stages know of a box.
        num_heads: of the attention among the boxes of an image.
        hidden: width of the two layers after it.
        interaction: how a stage reads a region: "linear", one layer on the whole grid; "dynamic", two 1x1 convolutions
            whose weights are made of what is known of the box (Sun et al., section 3.1), then such a layer.
        dynamic_width: channels between these two.
        cls_layers, box_layers: hidden layers (linear without bias, LayerNorm, ReLU) between what a stage knows of a box
            and its classes, or its four numbers; DiffusionDet has 1 and 3.
    """

    runtime_arguments = ("states", "cls_loss")

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        states: StateCoder,
        cls_loss: ClassificationLoss,
        pool: RegionPool,
        coder: Coder,
        num_stages: Count = 3,
        width: Count = 128,
        num_heads: Count = 4,
        hidden: Count = 256,
        interaction: Literal["linear", "dynamic"] = "linear",
        dynamic_width: Count = 64,
        cls_layers: Whole = 0,
        box_layers: Whole = 0,
    ) -> None:
        super().__init__()
        if width % num_heads or width % 2:
            raise ValueError(f"width must be even and a multiple of num_heads, not {width} of {num_heads}")
        self.pool, self.coder, self.states = pool, coder, states
        channels = pool.out_channels(in_spec.channels[0])
        self.query = nn.Linear(channels, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.width = width
        grid = (channels, pool.resolution**2)
        self.stages = nn.ModuleList(
            _Stage(grid, width, num_heads, hidden, dynamic_width if interaction == "dynamic" else None)
            for _ in range(num_stages)
        )
        scores = [cls_loss.make_layer(width, num_classes) for _ in range(num_stages)]
        boxes = [nn.Linear(width, 4) for _ in range(num_stages)]
        for score, box in zip(scores, boxes, strict=True):
            score.initialize()
            nn.init.normal_(box.weight, std=0.001)  # starts by moving a box hardly at all
            nn.init.zeros_(box.bias)
        self.cls_scores, self.box_preds = nn.ModuleList(scores), nn.ModuleList(boxes)
        self.cls_layers = nn.ModuleList(_hidden(width, cls_layers) for _ in range(num_stages))
        self.box_layers = nn.ModuleList(_hidden(width, box_layers) for _ in range(num_stages))

    def forward(self, features: Sequence[Tensor], boxes: Tensor, t: Tensor, images: Images) -> list[Guess]:
        """:meth:`guesses` of the regions of maps (B, C, H_l, W_l)."""
        maps = features[: self.pool.num_levels]
        return self.guesses(
            lambda boxes: self.pool(maps, list(boxes.unbind()), images), boxes, t, whole(boxes, images.sizes)
        )

    def guesses(self, read: Callable[[Tensor], Tensor], boxes: Tensor, t: Tensor, unit: Tensor) -> list[Guess]:
        """What each stage guesses; the boxes of one are given to the next without a gradient.

        Args:
            read: the grids (B N, C, k, k) of boxes (B, N, 4).
            boxes: (B, N, 4) px, none of them empty.
            t: (B,) times in [0, 1].
            unit: (B, 1, 4), :func:`~detkit.models.flow.state.whole` of the images.
        """
        batch, num = boxes.shape[:2]
        time = self.time(_waves(t, self.width).to(self.query.weight))
        known, guesses = None, []
        towers = zip(self.cls_layers, self.box_layers, strict=True)
        for stage, score, box, (to_score, to_box) in zip(
            self.stages, self.cls_scores, self.box_preds, towers, strict=True
        ):
            grids = read(boxes)
            if known is None:
                known = self.query(grids.mean(dim=(2, 3))).view(batch, num, -1)
            known = stage(known, grids, time)
            logits, deltas = score(to_score(known.flatten(0, 1))), box(to_box(known)).flatten(0, 1)
            moved = self.coder.decode(deltas, boxes.flatten(0, 1)).view(batch, num, 4)
            guesses.append(Guess(widened(logits).view(batch, num, -1), moved))
            boxes = self.bounded(moved.detach(), unit)
        return guesses

    def bounded(self, boxes: Tensor, unit: Tensor) -> Tensor:
        """``boxes`` (B, N, 4) px with centres in the image of ``unit`` (B, 1, 4), and of sizes that the states have."""
        return self.states.decode(self.states.encode(boxes, unit), unit)


def _hidden(width: int, num: int) -> nn.Sequential:
    """``num`` hidden layers; none changes nothing and has no weights."""
    layers = [(nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU(inplace=True)) for _ in range(num)]
    return nn.Sequential(*(part for layer in layers for part in layer))


class _Stage(nn.Module):
    """Attention among the boxes, a look at each one's region, two layers, and the time (FiLM)."""

    def __init__(
        self, grid: tuple[int, int], width: int, num_heads: int, hidden: int, dynamic_width: int | None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        if dynamic_width is None:
            self.look: nn.Module = _Whole(*grid, width)
        else:
            self.look = _Dynamic(*grid, width, dynamic_width)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.film = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.film.weight)  # starts as a stage that knows no time
        nn.init.zeros_(self.film.bias)

    def forward(self, known: Tensor, grids: Tensor, time: Tensor) -> Tensor:
        """What is known of the boxes (B, N, width): ``known``, their ``grids`` (B N, C, k, k), ``time`` (B, width)."""
        known = self.norms[0](known + self._attend(known))
        known = self.norms[1](known + self.look(known.flatten(0, 1), grids).view_as(known))
        known = self.norms[2](known + self.layers(known))
        factor, offset = self.film(time)[:, None].chunk(2, dim=-1)
        return known * (1 + factor) + offset

    def _attend(self, known: Tensor) -> Tensor:
        q, k, v = self.qkv(known).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.mixed(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Whole(nn.Module):
    """One layer on the whole grid."""

    def __init__(self, channels: int, cells: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(channels * cells, width)

    def forward(self, known: Tensor, grids: Tensor) -> Tensor:
        return self.layer(grids.flatten(1))


class _Dynamic(nn.Module):
    """Sparse R-CNN's dynamic instance interaction: a region read by weights that its box has made."""

    def __init__(self, channels: int, cells: int, width: int, inner: int) -> None:
        super().__init__()
        self.shape = (channels, inner)
        self.weights = nn.Linear(width, 2 * channels * inner)
        self.norm_inner, self.norm_outer = nn.LayerNorm(inner), nn.LayerNorm(channels)
        self.layer = nn.Sequential(nn.Linear(channels * cells, width), nn.LayerNorm(width), nn.ReLU(inplace=True))

    def forward(self, known: Tensor, grids: Tensor) -> Tensor:
        first, second = self.weights(known).chunk(2, dim=-1)
        channels, inner = self.shape
        x = grids.flatten(2).transpose(1, 2)  # (R, cells, C)
        x = F.relu(self.norm_inner(x @ first.view(-1, channels, inner)))
        x = F.relu(self.norm_outer(x @ second.view(-1, inner, channels)))
        return self.layer(x.flatten(1))


def _waves(t: Tensor, width: int) -> Tensor:
    """(B, width): sines and cosines of a thousand times ``t`` (B,) (Vaswani et al., NeurIPS 2017, section 3.5)."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=t.device, dtype=t.dtype) / (width // 2))
    angle = 1000 * t[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], dim=1)
