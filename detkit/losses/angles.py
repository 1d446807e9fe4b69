"""Functions of an angle by its cosine, whose gradients are finite everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def psi(cosine: Tensor, m: int) -> Tensor:
    """(-1)^j cos(m theta) - 2 j, which falls from 1 to 1 - 2 m as theta goes from 0 to pi.

    cos(m theta) is Chebyshev's polynomial of the cosine, whose gradient is finite everywhere.
    """
    before, power = torch.ones_like(cosine), cosine
    for _ in range(m - 1):
        before, power = power, 2 * cosine * power - before
    piece = (m * cosine.detach().clamp(-1, 1).arccos() / math.pi).floor().clamp(max=m - 1)
    return (1 - 2 * (piece % 2)) * power - 2 * piece


def falling_cosine(angle: Tensor) -> Tensor:
    """(-1)^j cos(angle) - 2 j for an angle in [j pi, (j + 1) pi]: falls for ever."""
    piece = (angle.detach() / math.pi).floor()
    return (1 - 2 * (piece % 2)) * angle.cos() - 2 * piece


def sine(cosine: Tensor) -> Tensor:
    """sqrt(1 - cos^2), whose own gradient is infinite at 1 and -1: there it is 0 here."""
    return (1 - cosine**2).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()


def arccosine(cosine: Tensor) -> Tensor:
    """The angle in [0, pi], with a finite gradient as :func:`sine` has."""
    return torch.atan2(sine(cosine), cosine)
