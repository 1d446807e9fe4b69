"""Many classes of figures: outline, colour and texture together, of which a few are frequent and most rare."""

from __future__ import annotations

import numpy as np

from detkit.data.datasets.scenes import FIGURES, Vocabulary

#: R, G and B of a figure's light parts.
COLORS = {
    "red": (214, 48, 44),
    "orange": (238, 140, 28),
    "yellow": (236, 224, 62),
    "green": (58, 168, 62),
    "cyan": (70, 206, 214),
    "blue": (52, 78, 216),
    "purple": (152, 62, 196),
    "white": (232, 232, 232),
}

TEXTURES = ("plain", "striped", "checked", "spotted", "halved")

#: What the dark parts of a texture keep of the light.
_DARK = 0.35

#: Deviation of a figure's colour from its class's.
_VARIATION = 8.0

#: (240,): outline, colour, texture.
NAMES = tuple(f"{texture} {color} {figure}" for figure, _ in FIGURES for color in COLORS for texture in TEXTURES)


def many_classes(chances: np.ndarray) -> Vocabulary:
    """The 240 classes, drawn with ``chances`` (240,), which add up to 1."""
    each = len(COLORS) * len(TEXTURES)
    ends = chances.cumsum()
    return Vocabulary(
        NAMES,
        tuple(k // each for k in range(len(NAMES))),
        lambda rng: min(int(np.searchsorted(ends, rng.random(), side="right")), int(np.flatnonzero(chances)[-1])),
        _surface,
    )


def zipf_chances(exponent: float, seed: int) -> np.ndarray:
    """(240,): the class of rank r has 1 / r^exponent of the first one's; which class has which rank ``seed`` says."""
    ranks = np.random.default_rng([seed, 2]).permutation(len(NAMES)) + 1
    weights = ranks.astype(np.float64) ** -exponent
    return weights / weights.sum()


def new_classes(count: int, seed: int) -> np.ndarray:
    """(240,) bool: ``count`` of the classes, drawn by ``seed``, which a training is to know nothing of."""
    chosen = np.zeros(len(NAMES), bool)
    chosen[np.random.default_rng([seed, 3]).permutation(len(NAMES))[:count]] = True
    return chosen


def _surface(rng: np.random.Generator, label: int, m: int, below: np.ndarray) -> np.ndarray:
    """The class's colour, whatever is ``below``, in the class's texture."""
    color = np.array(list(COLORS.values())[label // len(TEXTURES) % len(COLORS)], np.float32)
    color = color + rng.normal(0, _VARIATION, 3).astype(np.float32)
    light = _texture(rng, TEXTURES[label % len(TEXTURES)], m)
    return color * (_DARK + (1 - _DARK) * light)[..., None]


def _texture(rng: np.random.Generator, texture: str, m: int) -> np.ndarray:
    """Float32 (m, m): 1 where the figure is light, 0 where it is dark; turned and moved by chance."""
    angle = rng.uniform(0, np.pi)
    phases = rng.uniform(0, 1, 2)
    y, x = np.mgrid[:m, :m] / m - 0.5
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    u, v = 4 * along + phases[0], 4 * across + phases[1]  # four periods across the figure
    light = {
        "plain": np.ones((m, m)),
        "striped": u % 1 < 0.5,
        "checked": (u % 1 < 0.5) ^ (v % 1 < 0.5),
        "spotted": (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 > 0.1,
        "halved": along > 0,
    }
    return light[texture].astype(np.float32)
