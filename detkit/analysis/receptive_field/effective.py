"""The effective receptive field (Luo, Li, Urtasun & Zemel, NeurIPS 2016): how much of the analytic one counts.

The gradient of one cell with respect to the image, averaged over inputs, falls off from the middle of the field like a
bell; most of the analytic field contributes next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

#: Luo et al.: a pixel counts as inside where its gradient exceeds 1 - 95.45 % of that in the middle: for a bell, up to
#: 2.49 standard deviations away. Here of the peak: strided layers leave a grid, and the very middle may miss it.
THRESHOLD = 1 - 0.9545


def effective_fields(network: Callable[[Tensor], Sequence[Tensor]], inputs: Iterable[Tensor]) -> list[Tensor]:
    """How much each pixel moves the middle cell of each map, averaged over ``inputs``.

    The gradient of the sum of the cell's channels with respect to the pixels, its absolute value summed over the
    colours: without the absolute value, gradients of either sign would cancel in the average.

    Args:
        network: normalised pixels to feature maps, in eval mode.
        inputs: pixels (1, 3, H, W), all of one size.

    Returns:
        (H, W) for each map, float64 on the CPU; its middle cell is (h // 2, w // 2).
    """
    total: list[Tensor] = []
    count = 0
    for pixels in inputs:
        pixels = pixels.detach().requires_grad_()
        maps = network(pixels)
        for i, level in enumerate(maps):
            middle = level[0, :, level.shape[2] // 2, level.shape[3] // 2].sum()
            gradient = torch.zeros_like(pixels)
            if middle.requires_grad:
                (found,) = torch.autograd.grad(middle, pixels, retain_graph=i + 1 < len(maps), allow_unused=True)
                gradient = gradient if found is None else found
            magnitude = gradient[0].abs().sum(0).double().cpu()
            if count:
                total[i] += magnitude
            else:
                total.append(magnitude)
        count += 1
    return [magnitude / count for magnitude in total]


def effective_size(gradient: Tensor) -> float:
    """The side in px of a square with the area in which ``gradient`` (H, W) exceeds 4.55 % of its peak."""
    peak = gradient.max()
    return math.sqrt(int((gradient > THRESHOLD * peak).sum())) if peak > 0 else 0.0
