"""How timings are shown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rich.table import Table


def timing_table(times: Mapping[str, Sequence[float]], title: str, num_images: int | None = None) -> Table:
    """Median, range, how many times as fast as the first, and, of ``num_images`` at once, images per second."""
    table = Table(title=title, title_justify="left")
    rate = [] if num_images is None else ["images/s"]
    for heading in ("", "median ms", "range ms", "times as fast", *rate):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    first = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        median, low, high = (1e3 * v for v in (statistics.median(values), min(values), max(values)))
        rate = [] if num_images is None else [f"{1e3 * num_images / median:.2f}"]
        table.add_row(name, f"{median:.1f}", f"{low:.1f}-{high:.1f}", f"{1e3 * first / median:.2f}", *rate)
    return table
