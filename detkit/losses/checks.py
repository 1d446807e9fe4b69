"""Checks of what losses are given: a number that trains backwards is refused by its name."""

from __future__ import annotations

import math


def non_negative(name: str, value: float) -> float:
    """``value``, if it is a finite number from 0 on.

    Raises:
        ValueError: it is not.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number from 0 on, not {value}")
    return value


def between_0_and_1(name: str, value: float) -> float:
    """``value``, if it lies between 0 and 1 and is neither.

    Raises:
        ValueError: it does not.
    """
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}")
    return value
