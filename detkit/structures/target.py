"""What is to be found in one image, in the frame of the network input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.structures.columns import check_landmarks, columns_of, each_field
from detkit.utils.transfer import moved_together, sent


class Kinds(NamedTuple):
    """Indices of the objects that are ``wanted`` (W,) and of those ``ignored`` (I,), int64, ascending."""

    wanted: Tensor
    ignored: Tensor


@dataclass(frozen=True, slots=True)
class Target:
    """N objects of one image.

    ``boxes`` (N, 4) float32 x1 y1 x2 y2 px of the network input; ``labels`` (N,) int64 in [0, K);
    ``ignore`` (N,) bool: crowd or difficult, neither positive nor negative. ``landmarks``, where the data have them,
    (N, L, 3) float32: x, y px and the mark of each of L points, 0 where nobody labelled it (see
    :class:`~detkit.structures.Landmarks`). Once made, none of them is written to.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    landmarks: Tensor | None = None
    _kinds: Kinds | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4), not {tuple(self.boxes.shape)}")
        n = self.boxes.shape[0]
        if self.labels.shape != (n,) or self.ignore.shape != (n,):
            raise ValueError(f"{n} boxes but labels {tuple(self.labels.shape)} and ignore {tuple(self.ignore.shape)}")
        check_landmarks(self.landmarks, n, 3, "boxes")

    @classmethod
    def empty(cls) -> Target:
        """A target without objects."""
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def select(self, index: Tensor) -> Target:
        """The objects that ``index`` (a bool mask or integers) names."""
        return each_field(self, lambda column: column[index])

    @property
    def kinds(self) -> Kinds:
        """Which objects are wanted and which are not, found once.

        Copies know it: whatever a loader has brought to a GPU says there how many of each there are, and the host does
        not wait for the answer.
        """
        if self._kinds is None:
            self._know(Kinds(*(mask.nonzero().squeeze(1) for mask in (~self.ignore, self.ignore))))
        assert self._kinds is not None
        return self._kinds

    @property
    def wanted(self) -> Target:
        """The objects that are to be found: those not ignored."""
        return self.select(self.kinds.wanted) if len(self.kinds.ignored) else self

    def with_boxes(self, boxes: Tensor) -> Target:
        """The same objects at other ``boxes`` (N, 4), without landmarks, which are not known there."""
        moved = Target(boxes, self.labels, self.ignore)
        moved._know(self.kinds)
        return moved

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """A copy on ``device``, or itself if it is there."""
        return brought([self], device, non_blocking)[0]

    def pin_memory(self) -> Target:
        """A copy in memory that a GPU can read by itself."""
        return pinned([self])[0]

    def _know(self, kinds: Kinds) -> None:
        object.__setattr__(self, "_kinds", kinds)


def find_kinds(targets: Sequence[Target]) -> None:
    """Find out :attr:`Target.kinds` of all of ``targets`` at once: where they are on a GPU, the host waits once."""
    new = [target for target in targets if target._kinds is None]
    if not new:
        return
    device = new[0].ignore.device
    masks = torch.cat([target.ignore for target in new]).cpu().split([len(target) for target in new])
    found = [mask.nonzero().squeeze(1) for each in masks for mask in (~each, each)]
    indices = sent(torch.cat(found), device).split([len(index) for index in found])
    for target, wanted, ignored in zip(new, indices[::2], indices[1::2], strict=True):
        target._know(Kinds(wanted, ignored))


def brought(targets: Sequence[Target], device: torch.device | str, non_blocking: bool = False) -> tuple[Target, ...]:
    """Copies of all of ``targets`` on ``device``, as they are if there.

    What is copied is the columns of all of them at once, one for each type of number: three, however many they are.
    """
    device = torch.device(device)
    if all(target.boxes.device == device for target in targets):
        return tuple(targets)
    return _moved(targets, lambda whole: sent(whole, device) if non_blocking else whole.to(device))


def pinned(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Copies of all of ``targets`` in memory that a GPU can read by itself, their columns one after the other."""
    return _moved(targets, lambda whole: whole.pin_memory())


def _moved(targets: Sequence[Target], move: Callable[[Tensor], Tensor]) -> tuple[Target, ...]:
    columns = [column for target in targets for column in (*columns_of(target), *target.kinds)]
    moved = iter(moved_together(columns, move))
    copies = []
    for target in targets:
        copy = each_field(target, lambda _: next(moved))
        copy._know(Kinds(next(moved), next(moved)))
        copies.append(copy)
    return tuple(copies)


def on_host(targets: Sequence[Target]) -> list[Target]:
    """Copies of all of ``targets`` on the CPU, brought in one piece and without landmarks; as they are if there."""
    if all(target.boxes.device == torch.device("cpu") for target in targets):
        return list(targets)
    dtype = targets[0].boxes.dtype
    columns = [torch.cat([t.boxes.double(), torch.stack([t.labels, t.ignore], dim=1)], dim=1) for t in targets]
    rows = torch.cat(columns).cpu().split([len(target) for target in targets])
    return [Target(row[:, :4].to(dtype), row[:, 4].long(), row[:, 5].bool()) for row in rows]
