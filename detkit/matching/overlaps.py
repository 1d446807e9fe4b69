"""Which boxes of many overlap by more than a threshold, without looking at all pairs: a sweep from left to right."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

#: Rows that are compared with their followers in one go: measured best of 64 to 1024, on one core
_ROWS = 256
#: By how much the quick look in float32 is laxer than the threshold; what its products and sums round is below a tenth
_SLACK = 1e-5
#: Px by which its boxes begin further to the left and above, for each px of the field that they lie in: corners are
#: rounded, the more the farther they are from the field's, and of a small box that is more than the slack
_ROUNDED = 2.0**-21


class Sweep:
    """The pairs among boxes whose IoU is above ``threshold``, to be counted before they are looked for.

    Two boxes of which x1 differ by (1 - threshold) of the left one's width or more overlap less: their intersection is
    narrower than threshold times the left one. So boxes are sorted by x1, and each is compared with those that follow
    it within that reach, many at a time: quickly in float32, and once more in float64 where that comes near.

    Args:
        corners: (N, 4) float64 px, finite.
        offset: (N,) float64 px by which each lies further to the right: boxes that shall not meet are moved apart.
        threshold: of the IoU, in [0, 1).
    """

    def __init__(self, corners: np.ndarray, offset: np.ndarray, threshold: float) -> None:
        self.threshold = threshold
        self.order = (corners[:, 0] + offset).argsort(kind="stable")
        self._plain = np.ascontiguousarray(corners[self.order].T)
        self._moved = self._plain.copy()
        self._moved[[0, 2]] += offset[self.order]
        x1, _, x2, _ = self._moved
        slack = 1e-9 * (np.ptp(self._plain) + 1)  # what the rounding of the offset can take away
        ends = x1.searchsorted(x1 + (x2 - x1) * (1 - threshold) + slack, side="right")
        reach = ends - np.arange(1, len(x1) + 1)
        self._reaches = [int(reach[start : start + _ROWS].max()) for start in range(0, len(x1), _ROWS)]

    @property
    def num_compared(self) -> int:
        """How many pairs `pairs` looks at."""
        return sum(max(0, reach) for reach in self._reaches) * _ROWS

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The indices (P,) and (P,) of the two boxes of each pair, each pair once, in no order."""
        lefts, rights = [], []
        for first, reach in zip(range(0, len(self.order), _ROWS), self._reaches, strict=True):
            if reach > 0:
                left, right = self._near(first, reach)
                lefts.append(left)
                rights.append(right)
        if not lefts:
            return self.order[:0], self.order[:0]
        left, right = np.concatenate(lefts), np.concatenate(rights)
        above = self._exact(left, right) > self.threshold
        return self.order[left[above]], self.order[right[above]]

    def _near(self, first: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """Of rows from ``first`` on and their ``reach`` followers, those that overlap by about the threshold or more.

        A place (k, r) of the arrays is row r and its follower k + 1, so that each k is a run of memory; beyond the last
        box stands NaN, which is above nothing. IoU > t is written (1 + t) intersection > t (area + area).
        """
        rows = min(_ROWS, len(self.order) - first)
        block = np.full((5, rows + reach), np.nan, dtype=np.float32)
        known = self._plain[:, first : first + rows + reach]
        # from their own corner on, so that float32 rounds little wherever in a large image they lie
        own = known - known.min(axis=1, keepdims=True)[[0, 1, 0, 1]]
        area = (own[2] - own[0]) * (own[3] - own[1])
        own[:2] -= own.max() * _ROUNDED
        block[:4, : known.shape[1]] = own
        block[4, : known.shape[1]] = area * (self.threshold * (1 - _SLACK))
        x1, y1, x2, y2, share = block[:, :rows]
        run, step = block.strides
        next_x1, next_y1, next_x2, next_y2, next_share = as_strided(
            block[:, 1:], (5, reach, rows), (run, step, step), writeable=False
        )
        width = np.minimum(x2, next_x2)
        width -= np.maximum(x1, next_x1)
        height = np.minimum(y2, next_y2)
        height -= np.maximum(y1, next_y1)
        common = width.clip(0, out=width)
        common *= height.clip(0, out=height)
        common *= 1 + self.threshold
        places = np.flatnonzero(common > share + next_share)
        follower, row = np.divmod(places, rows)
        return first + row, first + row + follower + 1

    def _exact(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(P,) IoU in float64, of the boxes as they are moved: the operations of torchvision's NMS, in its order."""
        x1, y1, x2, y2 = self._moved
        area = (x2 - x1) * (y2 - y1)
        width = np.minimum(x2[left], x2[right]) - np.maximum(x1[left], x1[right])
        height = np.minimum(y2[left], y2[right]) - np.maximum(y1[left], y1[right])
        common = width.clip(0) * height.clip(0)
        with np.errstate(invalid="ignore", divide="ignore"):  # boxes without an area
            return common / (area[left] + area[right] - common)


def survivors(better: np.ndarray, worse: np.ndarray, num: int) -> np.ndarray:
    """(num,) which of ``num`` remain where each that remains removes the ``worse`` of its pairs.

    In rounds: who has nobody better left remains, and those below go. There are as many rounds as the longest chain of
    overlaps has links, three or four among proposals.
    """
    gone = np.zeros(num, dtype=bool)
    while len(better):
        waits = np.zeros(num, dtype=bool)
        waits[worse] = True
        decided = ~waits[better]
        gone[worse[decided]] = True
        left = ~(decided | gone[better] | gone[worse])
        better, worse = better[left], worse[left]
    return ~gone
