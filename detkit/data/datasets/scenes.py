"""Draws the scenes of the shapes data set: textured backgrounds with shaded, overlapping, noisy figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from detkit.structures.landmarks import HIDDEN, VISIBLE

#: Masks are drawn this many times larger and averaged down: the edges are then smooth.
SUPERSAMPLING = 4

#: Usual width of a figure as a share of the longer side, drawn log-uniformly: at 160 px from 13 to 120 px, which
#: is small, medium and the beginning of large in COCO's terms.
SIZE_RANGE = (0.08, 0.75)

#: So much of each figure stays visible, whatever lies over it and however far it reaches over the border.
MIN_VISIBLE = 0.6

#: Figures are turned by at most this angle: a square stays a square, for a detector that has minutes to learn it.
MAX_TURN = np.pi / 9

#: Placements tried for a figure before it is left out of a crowded scene.
NUM_TRIALS = 10


class Scene(NamedTuple):
    """``image`` uint8 (H, W, 3) RGB; ``boxes`` (N, 4) x y w h px of the visible parts; ``labels`` (N,); ``areas`` (N,)
    visible px; ``tips`` (N, 4, 3) x, y px and mark of the points TIP_NAMES."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    tips: np.ndarray


class Vocabulary(NamedTuple):
    """The K classes that a scene draws from.

    ``names`` (K,). ``figures`` (K,): the place in FIGURES of each one's outline. ``draw``: a label by chance.
    ``surface``: float32 (m, m, 3), how a figure of a label is coloured, on a background of that mean colour.
    """

    names: tuple[str, ...]
    figures: tuple[int, ...]
    draw: Callable[[np.random.Generator], int]
    surface: Callable[[np.random.Generator, int, int, np.ndarray], np.ndarray]


def draw_scene(
    rng: np.random.Generator,
    image_size: int,
    max_objects: int,
    size_range: Sequence[float] = SIZE_RANGE,
    vocabulary: Vocabulary | None = None,
) -> Scene:
    """One scene of 1 to ``max_objects`` figures; its longer side is ``image_size`` px, the other at least 3/4 of it.

    ``size_range``: least and greatest width of a figure, as shares of ``image_size``. ``vocabulary``: the classes, by
    default FIGURES in any colour.
    """
    vocabulary = vocabulary or ANY_COLOR
    sides = [image_size, round(image_size * rng.uniform(0.75, 1.0))]
    h, w = sides if rng.random() < 0.5 else sides[::-1]
    image = _background(rng, h, w)
    owner = np.full((h, w), -1, dtype=np.int16)
    labels: list[int] = []
    drawn: list[int] = []  # pixels that each figure would show alone on an endless image
    tips: list[np.ndarray] = []
    log_range = np.log(np.array(size_range) * image_size)
    sizes = np.sort(np.exp(rng.uniform(*log_range, size=rng.integers(1, max_objects + 1))))[::-1]
    for size in sizes:  # the large ones first, so that the small ones lie on top of them
        label = vocabulary.draw(rng)
        mask, points = _mask(rng, vocabulary.figures[label], size)
        place = _place(rng, mask, owner, drawn)
        if place is not None:
            _paint(image, mask, place, lambda m, below, label=label: vocabulary.surface(rng, label, m, below))
            _visible(owner, place, mask.shape)[_cut(mask, place, owner.shape) >= 0.5] = len(labels)
            labels.append(label)
            drawn.append(int((mask >= 0.5).sum()))
            tips.append(np.stack([points, np.full_like(points, mask.shape[0] / 2)]) + np.array(place)[::-1])
    boxes = [cv2.boundingRect((owner == k).astype(np.uint8)) for k in range(len(labels))]
    areas = [int((owner == k).sum()) for k in range(len(labels))]
    marked = np.array([_marked(points[0], points[1], owner, k) for k, points in enumerate(tips)]).reshape(
        -1, len(TIP_NAMES), 3
    )
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Scene(_expose(rng, image), boxes, np.array(labels), np.array(areas), marked)


def _background(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Float32 (h, w, 3): a soft play of colours, grain, and on some scenes a weave of stripes."""
    colors = rng.uniform(50, 190, 3) + rng.normal(0, 22, (int(rng.integers(2, 6)), int(rng.integers(2, 6)), 3))
    image = cv2.resize(colors.astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, rng.uniform(2, 9), (h // int(rng.integers(3, 9)), w // int(rng.integers(3, 9))))
    image += cv2.resize(grain.astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)[..., None]
    if rng.random() < 0.4:
        image += rng.uniform(4, 12) * _stripes(rng, h, w, rng.uniform(6, 24))[..., None]
    return image


def _mask(rng: np.random.Generator, figure: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Float32 (m, m) in 0..1: the slightly turned and stretched figure, ``size`` px across; and its tips (4, 2) px."""
    angle = rng.uniform(-MAX_TURN, MAX_TURN)
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outlines = [(outline * [stretch, 1 / stretch]) @ turn.T for outline in FIGURES[figure][1]()]
    extent = np.abs(outlines[0]).max()
    m = int(np.ceil(size)) + 2
    scale = size / 2 / extent * SUPERSAMPLING
    points = [np.round(o * scale + m * SUPERSAMPLING / 2).astype(np.int32) for o in outlines]
    canvas = np.zeros((m * SUPERSAMPLING, m * SUPERSAMPLING), dtype=np.uint8)
    cv2.fillPoly(canvas, points, 255)  # a second outline inside the first leaves a hole
    mask = cv2.resize(canvas, (m, m), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    tips = (np.array(TIPS[FIGURES[figure][0]]) * [stretch, 1 / stretch]) @ turn.T * scale
    return mask, (tips + m * SUPERSAMPLING / 2 + 0.5) / SUPERSAMPLING  # fillPoly's points are middles of pixels


def _marked(tips: np.ndarray, middles: np.ndarray, owner: np.ndarray, k: int) -> np.ndarray:
    """(4, 3): ``tips`` (4, 2) px of figure ``k`` with their marks, hidden where another figure lies over them.

    Beside the image, and where the figure has no such tip (nan), they are not labelled.
    """
    h, w = owner.shape
    marked = np.zeros((len(tips), 3))
    for i, (tip, inner) in enumerate(zip(tips, tips + 0.1 * (middles - tips), strict=True)):
        if np.isfinite(tip).all() and (tip >= 0).all() and (tip <= [w, h]).all():
            x, y = np.minimum(inner.astype(int), [w - 1, h - 1])
            marked[i] = *tip, VISIBLE if owner[y, x] in (k, -1) else HIDDEN
    return marked


def _place(rng: np.random.Generator, mask: np.ndarray, owner: np.ndarray, drawn: list[int]) -> tuple[int, int] | None:
    """Row and column of the mask's corner, so that enough of it and of all figures below remains visible."""
    h, w = owner.shape
    m = mask.shape[0]
    alone = (mask >= 0.5).sum()
    seen = np.bincount(owner[owner >= 0], minlength=len(drawn))
    for _ in range(NUM_TRIALS):
        place = int(rng.integers(-m // 4, h - 3 * m // 4 + 1)), int(rng.integers(-m // 4, w - 3 * m // 4 + 1))
        inside = _cut(mask, place, owner.shape) >= 0.5
        covered = _visible(owner, place, mask.shape)[inside]
        left = seen - np.bincount(covered[covered >= 0], minlength=len(drawn))
        if inside.sum() >= MIN_VISIBLE * alone and (left >= MIN_VISIBLE * np.array(drawn)).all():
            return place
    return None


def _visible(array: np.ndarray, place: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The part of ``array`` that a patch of ``shape`` at ``place`` covers, as a view."""
    (top, left), (h, w) = place, shape[:2]
    return array[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)]


def _cut(patch: np.ndarray, place: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The part of ``patch`` that lies inside an image of ``shape`` when its corner is at ``place``."""
    (top, left), (h, w) = place, shape[:2]
    return patch[max(-top, 0) : h - top, max(-left, 0) : w - left]


def _paint(
    image: np.ndarray, mask: np.ndarray, place: tuple[int, int], surface_of: Callable[[int, np.ndarray], np.ndarray]
) -> None:
    """Lay a shadow and the shaded figure onto ``image``."""
    m = mask.shape[0]
    shadow = cv2.GaussianBlur(mask, (0, 0), 1 + 0.03 * m)
    offset = place[0] + 1 + m // 24, place[1] + 1 + m // 24
    _visible(image, offset, mask.shape)[:] *= 1 - 0.35 * _cut(shadow, offset, image.shape)[..., None]
    below = _visible(image, place, mask.shape)
    surface = surface_of(m, below.mean((0, 1)))
    light = np.linspace(1, -1, m, dtype=np.float32)
    surface *= 1 + 0.22 * (0.6 * light[:, None] + 0.4 * light[None, :])[..., None]
    rim = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
    surface *= 1 - 0.3 * rim[..., None]
    alpha = _cut(mask, place, image.shape)[..., None]
    below += alpha * (_cut(surface, place, image.shape) - below)


def _any_color(rng: np.random.Generator, _: int, m: int, below: np.ndarray) -> np.ndarray:
    """A colour that stands out from that ``below``, perhaps with a pattern."""
    candidates = rng.uniform(20, 235, (6, 3))
    color = candidates[np.linalg.norm(candidates - below, axis=1).argmax()]
    surface = np.broadcast_to(color.astype(np.float32), (m, m, 3)).copy()
    if rng.random() < 0.5:
        pattern = _stripes(rng, m, m, max(5.0, m * rng.uniform(0.15, 0.35)))
        if rng.random() < 0.4:
            pattern = pattern * _stripes(rng, m, m, max(5.0, m * rng.uniform(0.15, 0.35)))
        surface += (0.5 + 0.5 * pattern)[..., None] * rng.uniform(-60, 60, 3).astype(np.float32)
    return surface


def _stripes(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    """Float32 (h, w) in -1..1: soft stripes of ``period`` px in a random direction."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    along = np.arange(h)[:, None] * np.sin(angle) + np.arange(w)[None, :] * np.cos(angle)
    return np.tanh(3 * np.sin(2 * np.pi * along / period + phase)).astype(np.float32)


def _expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a camera makes of it: brightness, a little blur, noise, 8 bits."""
    image = (image - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-15, 15)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    image = image + rng.normal(0, rng.uniform(2, 9), image.shape)
    return image.clip(0, 255).astype(np.uint8)


def _ellipse(radius: float = 1.0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return radius * np.column_stack([np.cos(angles), np.sin(angles)])


def _polygon(num_corners: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, num_corners, endpoint=False)
    return np.column_stack([np.cos(angles), np.sin(angles)])


def _star() -> np.ndarray:
    radii = np.tile([1.0, 0.42], 5)
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    return radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])


def _cross() -> np.ndarray:
    a = 0.32
    quarter = [(1, -a), (1, a), (a, a)]
    turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([np.array(quarter) @ turn.T for turn in turns])


#: Class name, and what gives its outlines (P, 2) about the origin; the second outline of a ring is its hole.
FIGURES: tuple[tuple[str, Callable[[], list[np.ndarray]]], ...] = (
    ("circle", lambda: [_ellipse()]),
    ("square", lambda: [_polygon(4)]),
    ("triangle", lambda: [_polygon(3)]),
    ("star", lambda: [_star()]),
    ("cross", lambda: [_cross()]),
    ("ring", lambda: [_ellipse(), _ellipse(0.55)]),
)

#: The landmarks of figures: where their corners and arms end. Round ones have none that could be seen.
TIP_NAMES = ("right_tip", "lower_tip", "left_tip", "upper_tip")
_NO_TIP = (np.nan, np.nan)
_FOUR_TIPS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))

#: Class name, and its tips in the frame of its outline.
TIPS = {
    "circle": (_NO_TIP,) * 4,
    "square": _FOUR_TIPS,
    "triangle": ((1.0, 0.0), tuple(_polygon(3)[1]), _NO_TIP, tuple(_polygon(3)[2])),
    "star": ((1.0, 0.0), tuple(_polygon(5)[1]), _NO_TIP, tuple(_polygon(5)[4])),
    "cross": _FOUR_TIPS,
    "ring": (_NO_TIP,) * 4,
}

#: Six classes, told apart by their outlines alone.
ANY_COLOR = Vocabulary(
    tuple(name for name, _ in FIGURES),
    tuple(range(len(FIGURES))),
    lambda rng: int(rng.integers(len(FIGURES))),
    _any_color,
)
