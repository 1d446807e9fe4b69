"""What a trainer may be given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Refuse a number below 1; None says that there is none.

    Raises:
        ValueError: the message names it.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}")


def check_can_be_kept(config: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse what no checkpoint could be written with, or read again.

    Raises:
        ValueError: ``run_dir`` is no folder, or ``config`` has more than plain values.
    """
    if not run_dir.is_dir():
        raise ValueError(f"run_dir {run_dir} is not a folder")
    try:
        json.dumps(config)
    except TypeError as error:
        raise ValueError(f"config must be plain values, or no checkpoint could be read again: {error}") from None
