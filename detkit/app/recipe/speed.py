"""How fast a computer trains: what timings gave, in a file that another call can read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detkit.config import ConfigError
from detkit.utils.files import atomic_write

#: Digits that are kept, so that what is read back is what was measured.
DIGITS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds an image: ``fixed``, and ``per_megapixel`` of the network input."""

    fixed: float
    per_megapixel: float

    def __call__(self, megapixels: float) -> float:
        return self.fixed + self.per_megapixel * megapixels

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line:
        """The line through two ``points`` (megapixels, seconds); noise makes no part of it negative."""
        (x1, y1), (x2, y2) = sorted(points)
        slope = max((y2 - y1) / (x2 - x1), 0.0)
        fixed = y1 - slope * x1
        if fixed < 0 or slope == 0:
            fixed, slope = 0.0, (y1 + y2) / (x1 + x2)
        return cls(round(fixed, DIGITS), round(slope, DIGITS))


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one detector: seconds an image of a training step, and of an evaluation."""

    train: Line
    val: Line


@dataclass(frozen=True, slots=True)
class Speeds:
    """``machine`` in words; ``bf16``: how many times as fast a training step is in bf16 as in fp32; ``paces`` of each
    detector by its name, in the faster of the two; ``timed``: of which network, images and loading, in plain values;
    None where a file does not say."""

    machine: str
    bf16: float
    paces: Mapping[str, Pace]
    timed: Mapping[str, Any] | None = None

    def unlike(self, timed: Mapping[str, Any]) -> str:
        """In words where ``timed`` is another one; empty where it is not."""
        if self.timed is None:
            return "does not say what was timed"
        keys = [*self.timed, *(key for key in timed if key not in self.timed)]
        before, now = ([values.get(key, "nothing") for key in keys] for values in (self.timed, timed))
        others = [f"{k} {a}, here {b}" for k, a, b in zip(keys, before, now, strict=True) if a != b]
        return f"timed with {'; '.join(others)}" if others else ""

    def write(self, path: Path) -> None:
        """Keep them in the JSON file ``path``."""
        atomic_write(path, json.dumps(asdict(self), indent=1) + "\n")


def read_speeds(path: str | Path, detectors: Sequence[str]) -> Speeds:
    """What :meth:`Speeds.write` wrote, of at least these ``detectors``.

    Raises:
        ConfigError: there is no such file, or it holds something else; the message names file, key and value.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"speed: there is no file {path}; an earlier call leaves one, NAME.speed.json") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"speed: {path} cannot be read: {error}") from error
    try:
        paces = {name: _pace(content["paces"][name], name) for name in detectors}
        timed = content.get("timed")
        if not isinstance(timed, Mapping | None):
            raise ValueError(f"timed: must be a mapping, not {timed!r}")
        return Speeds(str(content["machine"]), _seconds(content["bf16"], "bf16"), paces, timed)
    except KeyError as error:
        raise ConfigError(f"speed: {path} has no {error.args[0]!r}: it is not what a recipe's timing wrote") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"speed: {path}: {error}") from None


def _pace(node: Mapping[str, Any], name: str) -> Pace:
    lines = []
    for kind in ("train", "val"):
        fixed, slope = (_seconds(node[kind][key], f"{name}.{kind}.{key}") for key in ("fixed", "per_megapixel"))
        if fixed + slope == 0:
            raise ValueError(f"{name}.{kind}: takes no time at all")
        lines.append(Line(fixed, slope))
    return Pace(*lines)


def _seconds(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{key}: must be a number from 0 on, not {value!r}")
    return float(value)
