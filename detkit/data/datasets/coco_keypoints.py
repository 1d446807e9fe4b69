"""The landmarks of COCO's JSON: names in the categories' ``keypoints``, x, y, v in the annotations'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detkit.data.datasets.checks import Oddity
from detkit.data.datasets.findings import Findings
from detkit.structures import Landmarks
from detkit.structures.landmarks import HIDDEN, UNLABELLED, VISIBLE, mirror_of

_NOT_READ = "no landmarks are read; data.train.landmarks=[...] names the points"


def landmark_names(
    findings: Findings, given: Sequence[str] | None, listed: Sequence[tuple[str, Any]]
) -> tuple[str, ...]:
    """The names of the points that the objects of a file have.

    Args:
        given: what the user says; None to take what the file says.
        listed: name and ``keypoints`` of each category, None for one without.
    """
    if given is not None:
        return tuple(given)
    lists = [(name, names) for name, names in listed if names]
    strange = [i for i, (_, names) in enumerate(lists) if not _are_names(names)]
    findings.note("keypoints of a category that are no list of different names", _NOT_READ, strange, _shown(lists))
    if strange or not lists:
        return ()
    others = [i for i, (_, names) in enumerate(lists) if names != lists[0][1]]
    findings.note(f"categories with other keypoints than {lists[0][0]}", _NOT_READ, others, _shown(lists))
    return () if others else tuple(lists[0][1])


def points_of(values: Sequence[Any], num: int) -> np.ndarray:
    """(M, ``num``, 3) float64 x, y, v of the annotations' ``keypoints``; 0 for one that has none, NaN for no points.

    Points are ``num`` times x, y and v, which is 0, 1 or 2.
    """
    points = np.zeros((len(values), 3 * num))
    for row, value in enumerate(values):
        if value is not None:
            is_sound = isinstance(value, list) and len(value) == 3 * num and {type(v) for v in value} <= {int, float}
            points[row] = value if is_sound else np.nan
    points = points.reshape(-1, num, 3)
    wrong = ~np.isfinite(points).all(axis=(1, 2)) | ~np.isin(points[..., 2], (UNLABELLED, HIDDEN, VISIBLE)).all(axis=1)
    points[wrong] = np.nan
    points[points[..., 2] == UNLABELLED] = 0
    return points


def landmarks_of(points: np.ndarray | None, names: Sequence[str]) -> tuple[Landmarks | None, tuple[Oddity, ...]]:
    """The landmarks that ``points`` of :func:`points_of` are, and which annotations' are none; None for no names."""
    if points is None or not names:
        return None, ()
    wrong = np.asarray(np.isnan(points).any(axis=(1, 2)))
    problem = f"keypoints that are not {len(names)} times x, y and v of 0, 1 or 2"
    oddity = Oddity(problem, "taken for not labelled", wrong)
    return Landmarks(np.where(wrong[:, None, None], 0.0, points), mirror_of(names)), (oddity,)


def keypoints(points: np.ndarray) -> dict[str, Any]:
    """What an annotation of COCO's says of the ``points`` (L, 3) x, y, v of its object."""
    marks = points[:, 2].astype(int).tolist()
    numbers = [n for (x, y), v in zip(points[:, :2].tolist(), marks, strict=True) for n in (x, y, v)]
    return {"keypoints": numbers, "num_keypoints": sum(v != UNLABELLED for v in marks)}


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(n, str) for n in names) and len(set(names)) == len(names)


def _shown(lists: Sequence[tuple[str, Any]]) -> Any:
    return lambda i: f"{lists[i][0]}: {lists[i][1]}"
