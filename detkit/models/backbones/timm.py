"""Any backbone of timm (https://github.com/huggingface/pytorch-image-models, Apache-2.0) with ``features_only``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from torch import Tensor

from detkit.config import BACKBONES
from detkit.models.interfaces import Backbone
from detkit.structures import FeatureSpec, PixelStats


@BACKBONES
class Timm(Backbone):
    """A timm model as backbone; needs ``pip install detkit[timm]``.

    Args:
        name: as in ``timm.list_models()``, e.g. ``efficientnet_lite0`` or ``resnet18.a1_in1k``.
        pretrained: take timm's weights (fetched from their hub, or found in its cache).
        checkpoint: path of a state dict to load instead.
        frozen_norm: replace batch norms by their frozen form; makes sense with pretrained weights.
        levels: which feature maps to return, counted from the finest; null for those of stride 4 and more.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = True,
        checkpoint: str | None = None,
        frozen_norm: bool = True,
        levels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        timm = _import_timm()
        architecture = name.partition(".")[0]
        if architecture not in timm.list_models():
            near = timm.list_models(f"*{architecture[:6]}*")[:5]
            raise ValueError(f"timm has no model {name!r}; near: {', '.join(near) or 'none'}; see timm.list_models()")
        if checkpoint is not None:
            _check_weights(timm, name, Path(checkpoint))
        indices = levels if levels is not None else _levels_from_stride_4(timm, name)
        try:
            self.body: Any = timm.create_model(
                name, features_only=True, out_indices=indices, pretrained=pretrained or checkpoint is not None,
                pretrained_cfg_overlay={"file": checkpoint} if checkpoint else None,
            )  # fmt: skip
        except (OSError, RuntimeError, IndexError, AssertionError) as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            raise ValueError(f"timm model {name!r} cannot be made: {reason}") from error
        if frozen_norm:
            # timm's own function: its norm layers carry the activation too
            self.body = timm.layers.norm_act.freeze_batch_norm_2d(self.body)
        info = self.body.feature_info
        self.out_spec = FeatureSpec(tuple(info.channels()), tuple(float(r) for r in info.reduction()))
        config = self.body.pretrained_cfg if hasattr(self.body, "pretrained_cfg") else {}
        mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
        self.pixel_stats = PixelStats(tuple(255 * m for m in mean), tuple(255 * s for s in std))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return list(self.body(pixels))


def _import_timm():
    try:
        import timm
        import timm.layers.norm_act
    except ImportError as error:
        raise ValueError("backbone Timm needs the package timm: pip install 'detkit[timm]'") from error
    return timm


def _check_weights(timm, name: str, path: Path) -> None:
    """timm only warns of names that do not fit: refuse a file that is not of this model."""
    if not path.is_file():
        raise ValueError(f"checkpoint: no file {str(path)!r}")
    found = timm.models.load_state_dict(str(path), weights_only=True)
    model = timm.create_model(name, pretrained=False, num_classes=0)
    missing = sorted(model.state_dict().keys() - found.keys())
    if missing:
        raise ValueError(f"checkpoint: {path} does not fit timm's {name}: {len(missing)} missing, {missing[:3]}")


def _levels_from_stride_4(timm, name: str) -> tuple[int, ...]:
    reductions = timm.create_model(name, features_only=True, pretrained=False).feature_info.reduction()
    return tuple(i for i, r in enumerate(reductions) if r >= 4)
