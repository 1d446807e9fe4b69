"""Annotations of numbers that have bounds: a value outside is a mistake that ``validate`` tells with its key."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

#: How many there are of something that must be there.
Count = Annotated[int, Ge(1)]

#: How many there are of something that may be missing.
Whole = Annotated[int, Ge(0)]

#: A score, an IoU, a share of a whole.
Share = Annotated[float, Ge(0), Le(1)]
