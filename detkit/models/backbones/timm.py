"""Any backbone of timm (https://github.com/huggingface/pytorch-image-models, Apache-2.0) with ``features_only``."""

from __future__ import annotations

import difflib
import inspect
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from detkit.config import BACKBONES
from detkit.models.backbones.check import compare_maps, example_size, try_maps
from detkit.models.interfaces import Backbone
from detkit.models.layers import use_strided_depthwise
from detkit.structures import FeatureSpec, PixelStats
from detkit.utils.tensors import not_finite

#: What timm calls an input of any size, in the order tried: ViT and EVA, BEiT and others without padding, Swin.
_ANY_SIZE: tuple[Mapping[str, bool], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)

#: What :class:`Timm` itself tells timm; the last three are of classifiers.
_OWN = ("features_only", "out_indices", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
        "in_chans", "num_classes", "global_pool")  # fmt: skip


@BACKBONES
class Timm(Backbone):
    """A timm model as backbone; needs ``pip install detkit[timm]``.

    Images may have any size. For a model that wants multiples of a size (DLA: of 32 px, MaxViT: of 224 px) they are
    padded at the right and the bottom, and its maps cut; one of a single size needs ``options.img_size``, and images of
    that size.

    Args:
        name: as in ``timm.list_models()``, e.g. ``efficientnet_lite0`` or ``resnet18.a1_in1k``.
        pretrained: take timm's weights (fetched from their hub, or found in its cache).
        checkpoint: path of a state dict to load instead.
        frozen_norm: replace batch norms by their frozen form; makes sense with pretrained weights.
        levels: which feature maps to return, by their positions in timm's ``feature_info``, the finest being 0; null
            for the last one of each stride from 4 on.
        options: further arguments of the timm model, e.g. ``{drop_path_rate: 0.1}`` or ``{img_size: [512, 512]}``.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = True,
        checkpoint: str | None = None,
        frozen_norm: bool = True,
        levels: tuple[int, ...] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        timm = _import_timm()
        _check_name(timm, name)
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in (options or {}).items()}
        if own := sorted(given.keys() & set(_OWN)):
            raise ValueError(f"options: {own[0]!r} of {name} is set by detkit")
        if checkpoint is not None:
            _check_weights(timm, name, Path(checkpoint))
        indices = levels
        if indices is None:
            indices = _levels_from_stride_4(
                _create(timm, name, given, out_indices=(0,), pretrained=False).feature_info.info
            )
        self.body: Any = _create(
            timm, name, given, out_indices=indices, pretrained=pretrained or checkpoint is not None,
            pretrained_cfg_overlay={"file": checkpoint} if checkpoint else None,
        )  # fmt: skip
        if frozen_norm:
            # timm's own function: its norm layers carry the activation too
            self.body = timm.layers.norm_act.freeze_batch_norm_2d(self.body)
        use_strided_depthwise(self.body)
        info = self.body.feature_info
        self.out_spec = FeatureSpec(tuple(info.channels()), tuple(float(r) for r in info.reduction()))
        self._channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        config = self.body.pretrained_cfg if hasattr(self.body, "pretrained_cfg") else {}
        mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
        self.pixel_stats = PixelStats(tuple(255 * m for m in mean), tuple(255 * s for s in std))
        self._multiple = (1, 1)
        self._adapt_size(name, _pair(given.get("img_size")), config.get("input_size", (3, 224, 224))[-2:])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        h, w = pixels.shape[-2:]
        if self.example_size is not None and self.example_size != (h, w):
            wanted = " x ".join(map(str, self.example_size))
            raise ValueError(f"the backbone takes images of {wanted} px alone (options.img_size), not of {h} x {w} px")
        right, below = -w % self._multiple[1], -h % self._multiple[0]
        maps = list(self.body(F.pad(pixels, (0, right, 0, below)) if right or below else pixels))
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if right or below:
            strides = self.out_spec.strides
            maps = [m[:, :, : _cells(h, s), : _cells(w, s)] for m, s in zip(maps, strides, strict=True)]
        return [m.contiguous() for m in maps] if self._channels_last or right or below else maps

    def _adapt_size(self, name: str, asked: tuple[int, int] | None, usual: tuple[int, int]) -> None:
        """Find out which sizes the model takes: any, multiples of its patch or of its own size, or ``asked`` alone."""
        if next(self.parameters()).is_meta:
            return
        size, patch = asked or usual, math.ceil(max(self.out_spec.strides))
        odd = tuple(side - 7 for side in example_size(self.out_spec.strides))
        wrong = None
        for multiple in ((1, 1), (patch, patch), (2 * patch, 2 * patch), size):
            h, w = odd if multiple == (1, 1) else (multiple[0], 2 * multiple[1])
            if maps := self._tried((h, w)):
                try:
                    compare_maps(maps, self.out_spec, f"timm model {name!r}", (h, w))
                except ValueError as error:
                    wrong = error
                else:
                    self._multiple = multiple
                    return
        if wrong is not None:
            raise wrong
        if asked is None and self._tried(size):
            raise ValueError(
                f"timm model {name!r} takes images of {size[0]} x {size[1]} px alone: bring all images to one size and "
                "set options.img_size=[height,width] to it, where the model has that, or choose another model"
            )
        self.example_size = asked

    def _tried(self, size: tuple[int, int]) -> list[Tensor] | None:
        try:
            return try_maps(self, size)
        except (AssertionError, RuntimeError, ValueError, IndexError, TypeError):
            return None


def _pair(size: Any) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _cells(side: int, stride: float) -> int:
    return -(-side // int(stride))


def _import_timm():
    try:
        import timm
        import timm.layers.norm_act
    except ImportError as error:
        raise ValueError("backbone Timm needs the package timm: pip install 'detkit[timm]'") from error
    return timm


def _check_name(timm, name: str) -> None:
    architecture = name.partition(".")[0]
    known = timm.list_models()
    if architecture not in known:
        near = sorted(known, key=lambda other: (-_likeness(architecture, other), other))[:5]
        raise ValueError(f"timm has no model {name!r}; near: {', '.join(near)}; see timm.list_models()")


def _likeness(name: str, other: str) -> float:
    """How like ``other``, or its beginning, is to ``name``: 0 to 1. What timm appends is often left out."""
    return max(difflib.SequenceMatcher(None, name, part).ratio() for part in (other, other[: len(name)]))


def _create(timm, name: str, options: Mapping[str, Any], **arguments: Any) -> Any:
    """The model, for images of any size where timm offers that.

    Raises:
        ValueError: timm cannot make it, or has no such option.
    """
    for any_size in _ANY_SIZE:
        try:
            return timm.create_model(name, features_only=True, **arguments, **{**any_size, **options})
        except TypeError as error:
            if any(f"'{key}'" in str(error) for key in any_size.keys() - options.keys()):
                continue
            raise ValueError(_refused_option(timm, name, options, error)) from error
        except (OSError, RuntimeError, IndexError, AssertionError, AttributeError, ValueError, KeyError) as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            raise ValueError(f"timm model {name!r} cannot be made: {reason}") from error
    raise AssertionError("the last form has no argument that could be refused")


def _refused_option(timm, name: str, options: Mapping[str, Any], error: TypeError) -> str:
    wrong = next((key for key in options if f"'{key}'" in str(error)), None)
    if wrong is None:
        return f"timm model {name!r} cannot be made: {textwrap.shorten(str(error), 300)}"
    known = inspect.signature(type(timm.create_model(name)).__init__).parameters
    near = difflib.get_close_matches(wrong, known, 1)
    allowed = ", ".join(k for k in known if k not in (*_OWN, "self", "kwargs"))
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"options: timm model {name!r} has no argument {wrong!r}{hint} it takes {allowed}"


def _check_weights(timm, name: str, path: Path) -> None:
    """timm only warns of names that do not fit: refuse a file that is not of this model, or is not finite."""
    if not path.is_file():
        raise ValueError(f"checkpoint: no file {str(path)!r}")
    found = timm.models.load_state_dict(str(path), weights_only=True)
    model = timm.create_model(name, pretrained=False, num_classes=0)
    missing = sorted(model.state_dict().keys() - found.keys())
    if missing:
        raise ValueError(f"checkpoint: {path} does not fit timm's {name}: {len(missing)} missing, {missing}")
    if bad := not_finite((k, v) for k, v in found.items() if k in model.state_dict()):
        raise ValueError(f"checkpoint: {path} is of no use: {', '.join(bad)}")


def _levels_from_stride_4(info: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The last map of each stride, by its position among all that the model has, whatever timm returns by default."""
    last = {each["reduction"]: i for i, each in enumerate(info)}
    return tuple(i for reduction, i in sorted(last.items()) if reduction >= 4)
