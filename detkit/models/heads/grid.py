"""Cells of a grid and the objects in them, for heads where the cell of its centre answers for an object."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.structures.boxes import xyxy_to_cxcywh


def centre_cells(boxes: Tensor, stride: float, shape: tuple[int, int]) -> Tensor:
    """(N, 2) int64 x, y of the cell in which the centre of each of ``boxes`` (N, 4) px lies, on a map of ``shape``."""
    last = boxes.new_tensor([shape[1] - 1, shape[0] - 1])
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
