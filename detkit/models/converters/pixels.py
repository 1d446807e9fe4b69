"""How the network of another library takes pixels: the order of its channels, and what is taken off and divided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from detkit.structures import PixelStats
from detkit.structures.feature_spec import IMAGENET_STATS

#: How pixels come in by default, and where a bottleneck halves its map. ``pytorch``: RGB by ImageNet's mean and
#: deviation, in the 3x3 convolution; ``caffe``: BGR less the mean, in the first 1x1.
Style = Literal["pytorch", "caffe"]

#: Means of R, G and B that tell the order of channels where a file does not: ImageNet's, and the one of Caffe's models.
_KNOWN_MEANS = (IMAGENET_STATS.mean, (122.7717, 115.9465, 102.9801))

#: What rounding to float32 and the digits of a configuration leave apart.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Pixels:
    """The order of channels that a network takes, and its ``stats`` of R, G and B in 0..255, whatever that order is."""

    is_bgr: bool
    stats: PixelStats

    @property
    def style(self) -> Style | None:
        """The style whose pixels these are; None where they are of neither, and leave open where a map is halved."""
        if self.is_bgr and close(self.stats.std, (1.0, 1.0, 1.0)):
            return "caffe"
        return "pytorch" if not self.is_bgr and same_stats(self.stats, IMAGENET_STATS) else None


OF_STYLE: dict[Style, Pixels] = {
    "pytorch": Pixels(False, IMAGENET_STATS),
    "caffe": Pixels(True, PixelStats(IMAGENET_STATS.mean, (1.0, 1.0, 1.0))),
}


def pixels_of(mean: Any, std: Any, is_bgr: bool | None, names: tuple[str, str]) -> Pixels:
    """The pixels of a network by its ``mean`` and ``std``, each in the order in which channels come in.

    Args:
        is_bgr: that order; None to tell it by the mean.
        names: what the file calls both.

    Raises:
        ValueError: one of them is no triple of numbers, or the order cannot be told.
    """
    for name, value, least in zip(names, (mean, std), ("", " above 0"), strict=True):
        if not _is_triple(value) or (least and min(value) <= 0):
            raise ValueError(f"its {name} is {value}; allowed: three numbers{least}, of the channels in 0..255")
    mean, std = (tuple(map(float, value)) for value in (mean, std))
    if is_bgr is None:
        if not any(close(mean, known) or close(mean[::-1], known) for known in _KNOWN_MEANS):
            allowed = " or ".join(str(list(known)) for known in _KNOWN_MEANS)
            raise ValueError(
                f"its {names[0]} is {[round(value, 4) for value in mean]}, which does not tell RGB from BGR; allowed: "
                f"{allowed}, for BGR the other way round"
            )
        is_bgr = any(close(mean[::-1], known) for known in _KNOWN_MEANS)
    return Pixels(is_bgr, PixelStats(mean[::-1], std[::-1]) if is_bgr else PixelStats(mean, std))


def backbone_keys(style: Style, stats: PixelStats) -> dict[str, str]:
    """What ``style`` and ``stats`` are as keys of ``model.backbone``, with values as the command line has them."""
    keys = {"stride_in_1x1": str(style == "caffe").lower(), "pixel_std": _word(stats.std, IMAGENET_STATS.std)}
    mean = _word(stats.mean, IMAGENET_STATS.mean)
    return keys if mean == "null" else keys | {"pixel_mean": mean}


def _word(values: Sequence[float], default: Sequence[float]) -> str:
    return "null" if close(values, default) else f"[{','.join(f'{value:.7g}' for value in values)}]"


def same_stats(one: PixelStats, two: PixelStats) -> bool:
    """Whether both are alike but for rounding."""
    return close(one.mean, two.mean) and close(one.std, two.std)


def close(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether each number is alike but for rounding."""
    return all(abs(a - b) <= _TOLERANCE for a, b in zip(one, two, strict=True))


def _is_triple(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value)
