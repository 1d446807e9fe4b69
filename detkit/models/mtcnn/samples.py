"""The crops that each network of MTCNN is trained on (Zhang et al. 2016, section III): drawn by the images' keys.

Overlaps are counted between squares and objects. A square overlaps a long object little however well it lies, so that
an object 1 : 2 has no positive at all; with ``as_squares`` it is the object's own square that counts, and objects of
any shape have positives. With faces, which are nearly square, the two are nearly the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit.models.mtcnn.crops import squared
from detkit.structures import Target
from detkit.structures.boxes import pairwise_cover, pairwise_iou
from detkit.utils.transfer import sent_parts

NEGATIVE, PART, POSITIVE, LANDMARKS, UNUSED = 0, 1, 2, 3, -1

#: Positives overlap by more than the first, parts by the second to the first, negatives by less than the third (section
#: III-A). The paper leaves what lies between, and so does this.
POSITIVE_IOU, _PART_IOU, _NEGATIVE_IOU = 0.65, 0.4, 0.3

#: Negatives, parts and positives of five samples; to these come two with landmarks where there are any.
_SHARES = (3, 1, 1)
_LANDMARK_SHARE = 2

#: Squares drawn in an image at random, around each object, and beside each, before they are sampled. As the scripts by
#: which others trained it: 0.8 to 1.25 times an object's size, moved by up to 0.2 of it.
_NUM_RANDOM, _NUM_AROUND, _NUM_BESIDE = 60, 20, 4


class Samples(NamedTuple):
    """N crops of one image.

    ``boxes`` (N, 4) px; ``kinds`` (N,) NEGATIVE, PART, POSITIVE or LANDMARKS; ``labels`` (N,), ``objects`` (N, 4) px
    and, if the data have any, ``landmarks`` (N, L, 3) of the object that each overlaps most, of no meaning for a
    negative. Once they are sampled the kinds are on the host, which then knows how many there are of each.
    """

    boxes: Tensor
    kinds: Tensor
    labels: Tensor
    objects: Tensor
    landmarks: Tensor | None = None

    def select(self, index: Tensor, kinds: Tensor) -> Samples:
        """The samples that ``index`` (M,) names, as of ``kinds`` (M,)."""
        landmarks = None if self.landmarks is None else self.landmarks[index]
        return Samples(self.boxes[index], kinds, self.labels[index], self.objects[index], landmarks)

    @staticmethod
    def join(parts: Sequence[Samples]) -> Samples:
        """All samples of ``parts``; they have landmarks where all parts have."""
        columns = zip(*parts, strict=True)
        joined: list[Any] = [None if any(c is None for c in column) else torch.cat(column) for column in columns]
        return Samples(*joined)


def draw_squares(target: Target, size: tuple[int, int], least: float, generator: torch.Generator) -> Tensor:
    """Squares (N, 4) px: anywhere in an image of ``size`` (h, w), of ``least`` px or more, and about each object.

    All on the CPU, ``target`` too.
    """
    h, w = size
    most = max(least, min(h, w) / 2)
    sides = least + torch.rand(_NUM_RANDOM, 1, generator=generator) * (most - least)
    corner = torch.rand(_NUM_RANDOM, 2, generator=generator) * (torch.tensor([float(w), float(h)]) - sides).clamp(min=0)
    anywhere = torch.cat([corner, corner + sides], dim=1)
    objects = target.wanted.boxes
    around = _about(objects.repeat_interleave(_NUM_AROUND, 0), 0.8, 1.25, 0.2, generator)
    beside = _about(objects.repeat_interleave(_NUM_BESIDE, 0), 0.5, 1.5, 0.8, generator)
    return torch.cat([anywhere, around, beside])


def _about(objects: Tensor, least: float, most: float, shift: float, generator: torch.Generator) -> Tensor:
    """A square about each of ``objects`` (N, 4) px.

    Its side lies between ``least`` times the object's shorter and ``most`` times its longer side, its centre is moved
    by up to ``shift`` of them.
    """
    sides = objects[:, 2:] - objects[:, :2]
    low, high = least * sides.min(dim=1, keepdim=True).values, most * sides.max(dim=1, keepdim=True).values
    new = low + torch.rand(len(objects), 1, generator=generator) * (high - low)
    centre = objects[:, :2] + sides * (0.5 + shift * (2 * torch.rand(len(objects), 2, generator=generator) - 1))
    return torch.cat([centre - new / 2, centre + new / 2], dim=1)


def counted(objects: Tensor, as_squares: bool) -> Tensor:
    """The boxes (N, 4) px that overlaps with ``objects`` (N, 4) px are counted with."""
    return squared(objects) if as_squares else objects


def judge(boxes: Tensor, target: Target, as_squares: bool) -> tuple[Tensor, Tensor]:
    """The kind (N,) of each of ``boxes`` (N, 4) px, and the object (N,) that it overlaps most, as an index into
    ``target.wanted``; 0 where that is empty.

    A box of which more than a negative's share lies in an object to be ignored is no negative.
    """
    wanted = target.wanted
    if len(wanted):
        best, nearest = pairwise_iou(boxes, counted(wanted.boxes, as_squares)).max(dim=1)
    else:
        best = boxes.new_zeros(len(boxes))
        nearest = torch.zeros_like(best, dtype=torch.int64)
    kinds = torch.full_like(nearest, UNUSED)
    kinds[best < _NEGATIVE_IOU] = NEGATIVE
    kinds[(best >= _PART_IOU) & (best <= POSITIVE_IOU)] = PART
    kinds[best > POSITIVE_IOU] = POSITIVE
    ignored = target.kinds.ignored
    if len(ignored):
        inside = pairwise_cover(boxes, target.boxes[ignored]).max(dim=1).values
        kinds[(kinds == NEGATIVE) & (inside >= _NEGATIVE_IOU)] = UNUSED
    return kinds, nearest


def label(boxes: Tensor, target: Target, as_squares: bool) -> Samples:
    """What each of ``boxes`` (N, 4) px is an example of, see :func:`judge`."""
    kinds, nearest = judge(boxes, target, as_squares)
    wanted = target.wanted
    if len(wanted):
        points = None if wanted.landmarks is None else wanted.landmarks[nearest]
        return Samples(boxes, kinds, wanted.labels[nearest], wanted.boxes[nearest], points)
    points = None if target.landmarks is None else boxes.new_zeros(len(boxes), *target.landmarks.shape[1:])
    return Samples(boxes, kinds, torch.zeros_like(nearest), torch.zeros_like(boxes), points)


def sample(
    labelled: Sequence[Samples], num: int, num_first: Sequence[int], generators: Sequence[torch.Generator],
    with_landmarks: bool = False,
) -> list[Samples]:  # fmt: skip
    """About ``num`` of each image's ``labelled``, three negatives to one part and one positive; their kinds are on the
    host. A GPU is asked once, for the kinds of all.

    Args:
        num_first: so many of an image's boxes, the first, have come through the stage before: of the negatives these
            are taken before the others.
        with_landmarks: two fifths of ``num`` more of the kind LANDMARKS, of the positives whose object has any; as long
            as there are others, not those that stand as positives already.
    """
    told = torch.cat([torch.stack([s.kinds, _marked(s)], dim=1) for s in labelled]).cpu()
    picked = []
    parts = told.split([len(s.boxes) for s in labelled])
    for part, first, generator in zip(parts, num_first, generators, strict=True):
        kinds, marked = part.unbind(1)
        picked.append(_pick(kinds, marked.bool() if with_landmarks else None, num, first, generator))
    index = sent_parts([index for index, _ in picked], labelled[0].boxes.device)
    return [s.select(i, kinds) for s, i, (_, kinds) in zip(labelled, index, picked, strict=True)]


def _marked(labelled: Samples) -> Tensor:
    """(N,) int64: 1 for a positive whose object has a landmark."""
    if labelled.landmarks is None:
        return torch.zeros_like(labelled.kinds)
    return ((labelled.kinds == POSITIVE) & (labelled.landmarks[..., 2] > 0).any(dim=1)).long()


def _pick(
    kinds: Tensor, marked: Tensor | None, num: int, num_first: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Of one image the indices that :func:`sample` takes, and as what kinds; all on the host."""
    order = torch.randperm(len(kinds), generator=generator)
    first_ones = torch.cat([order[order < num_first], order[order >= num_first]])
    parts = []
    for kind, share in zip((NEGATIVE, PART, POSITIVE), _SHARES, strict=True):
        of_kind = first_ones if kind == NEGATIVE else order
        of_kind = of_kind[kinds[of_kind] == kind]
        parts.append(of_kind[: num * share // sum(_SHARES)])
    index = torch.cat(parts)
    if marked is None:
        return index, kinds[index]
    last_first = order.flip(0)
    more = last_first[marked[last_first]][: num * _LANDMARK_SHARE // sum(_SHARES)]
    return torch.cat([index, more]), torch.cat([kinds[index], torch.full_like(more, LANDMARKS)])
