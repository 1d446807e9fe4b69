"""Options that several benchmarks have."""

from __future__ import annotations

import argparse

from benchmarks.models import SIZE
from detkit.config.ranges import check_range


def add_size(parser: argparse.ArgumentParser) -> None:
    """``--size H W``."""
    words = f"px of the models' images (default: {SIZE[0]} {SIZE[1]})"
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=SIZE, help=words)


def size_of(options: argparse.Namespace) -> tuple[int, int]:
    """(h, w) px, as asked.

    Raises:
        ConfigError: boxes of up to 90 px do not fit in.
    """
    check_range("--size", min(options.size), 96)
    return options.size[0], options.size[1]
