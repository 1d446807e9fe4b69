"""Cells of a grid and the objects in them, for heads where the cell of its centre answers for an object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.matching import NEGATIVE, Assignment, only_in_range
from detkit.matching.assigners import IGNORED
from detkit.models.heads.dense import cells_inside
from detkit.structures import Images, Target
from detkit.structures.boxes import area, xyxy_to_cxcywh
from detkit.structures.target import find_kinds
from detkit.utils.transfer import constant


@torch.no_grad()
def assign_centres(
    shape: tuple[int, int], stride: float, images: Images, targets: Sequence[Target], *, num_classes: int, largest: bool
) -> list[Assignment]:
    """The cell that holds its centre answers for an object, among ``num_classes`` * H * W cells on a map of ``shape``.

    Cells that begin in the padding and those in ignored objects, where they hold no centre, are ignored; so are objects
    of a size that does not count in their image.

    Args:
        num_classes: K for cells of each class, 1 for cells that all classes share.
        largest: whether the largest or the smallest of several objects stays in a cell.
    """
    height, width = shape
    assignments = []
    for target, inside in zip(targets_in_range(images, targets), cells_inside(shape, stride, images), strict=True):
        objects, ignored = target.kinds
        crowded = cells_in_boxes(target.boxes[ignored], shape, stride)
        matched = torch.where(inside & ~crowded, NEGATIVE, IGNORED).flatten().repeat(num_classes)
        objects = objects[area(target.boxes[objects]).argsort(descending=not largest, stable=True)]  # the last stays
        x, y = centre_cells(target.boxes[objects], stride, shape).unbind(1)
        layer = target.labels[objects] if num_classes > 1 else 0
        assignments.append(Assignment(last_of_cell(matched, (layer * height + y) * width + x, objects)))
    return assignments


def targets_in_range(images: Images, targets: Sequence[Target]) -> list[Target]:
    """``targets`` with the objects out of their image's range to be ignored."""
    there = [only_in_range(target, meta.valid_range) for target, meta in zip(targets, images.meta, strict=True)]
    find_kinds(there)
    return there


def centre_cells(boxes: Tensor, stride: float, shape: tuple[int, int]) -> Tensor:
    """(N, 2) int64 x, y of the cell in which the centre of each of ``boxes`` (N, 4) px lies, on a map of ``shape``."""
    last = constant((shape[1] - 1, shape[0] - 1), boxes.device, boxes.dtype)
    return torch.minimum((xyxy_to_cxcywh(boxes)[:, :2] / stride).floor(), last).long()


def cell_corners(cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """(P, 2) int64 x, y of ``cells`` (P,), counted row by row on a map of ``shape``."""
    return torch.stack([cells % shape[1], torch.div(cells, shape[1], rounding_mode="floor")], dim=1)


def cells_in_boxes(boxes: Tensor, shape: tuple[int, int], stride: float) -> Tensor:
    """(H, W) bool: cells whose middle lies in one of ``boxes`` (N, 4) px."""
    y = (torch.arange(shape[0], device=boxes.device) + 0.5) * stride
    x = (torch.arange(shape[1], device=boxes.device) + 0.5) * stride
    in_y = (y >= boxes[:, 1, None]) & (y < boxes[:, 3, None])
    in_x = (x >= boxes[:, 0, None]) & (x < boxes[:, 2, None])
    return (in_y[:, :, None] & in_x[:, None, :]).any(0)


def last_of_cell(matched: Tensor, places: Tensor, objects: Tensor) -> Tensor:
    """``matched`` (M,) with ``objects[n]`` at ``places[n]`` (N,); of several at one place the last stays."""
    if len(objects) == 0:
        return matched
    order = torch.arange(len(objects), device=places.device)
    last = torch.full_like(matched, -1).scatter_reduce_(0, places, order, "amax")
    return torch.where(last >= 0, objects[last.clamp(min=0)], matched)
