"""Any backbone of timm (https://github.com/huggingface/pytorch-image-models, Apache-2.0) with ``features_only``."""

from __future__ import annotations

from torch import Tensor

from detkit.config import BACKBONES
from detkit.models.interfaces import Backbone
from detkit.models.layers import with_frozen_norms
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
        if checkpoint is None and name.partition(".")[0] not in timm.list_models():
            near = timm.list_models(f"*{name.partition('.')[0][:6]}*")[:5]
            raise ValueError(f"timm has no model {name!r}; near: {', '.join(near) or 'none'}; see timm.list_models()")
        indices = levels if levels is not None else _levels_from_stride_4(timm, name)
        try:
            self.body = timm.create_model(
                name, features_only=True, out_indices=indices,
                pretrained=pretrained and checkpoint is None, checkpoint_path=checkpoint or "",
            )  # fmt: skip
        except (OSError, RuntimeError, IndexError, AssertionError) as error:
            raise ValueError(f"timm model {name!r} cannot be made: {type(error).__name__}: {error}") from error
        if frozen_norm:
            self.body = with_frozen_norms(self.body)
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
    except ImportError as error:
        raise ValueError("backbone Timm needs the package timm: pip install 'detkit[timm]'") from error
    return timm


def _levels_from_stride_4(timm, name: str) -> tuple[int, ...]:
    reductions = timm.create_model(name, features_only=True, pretrained=False).feature_info.reduction()
    return tuple(i for i, r in enumerate(reductions) if r >= 4)
