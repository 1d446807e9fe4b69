"""Numbers that have bounds: annotations, whose keys ``validate`` tells where a value lies outside, and a check."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from detkit.config.registry import ConfigError

#: How many there are of something that must be there.
Count = Annotated[int, Ge(1)]

#: How many there are of something that may be missing.
Whole = Annotated[int, Ge(0)]

#: A score, an IoU, a share of a whole.
Share = Annotated[float, Ge(0), Le(1)]


def check_range(key: str, value: float | None, least: float, most: float | None = None) -> None:
    """Refuse a ``value`` below ``least``, above ``most``, or not a number; None is none.

    Raises:
        ConfigError: it names ``key``.
    """
    if value is None or (least <= value and (most is None or value <= most)):
        return
    bounds = f"be {least} or more" if most is None else f"lie in [{least}, {most}]"
    raise ConfigError(f"{key}: must {bounds}, not {value}")
