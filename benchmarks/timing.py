"""Timing side by side: ratios are what carries over from one machine to another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

#: Tells seconds; differences count.
Clock = Callable[[], float]


def clock_for(device: torch.device, threads: int | None) -> Clock:
    """The time of this process's own work where one thread does all of it, which other programs disturb little."""
    return time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter


def time_alternately(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each, run once per round, so that a busy moment of the machine meets them all; one round is no count.

    On a GPU a round runs each ten times, so that the host's share of a short kernel is hidden behind the one before.
    ``clock`` tells seconds.
    """
    inner = 10 if device.type == "cuda" else 1
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats + 1):
        for name, run in contestants.items():
            _wait(device)
            start = clock()
            for _ in range(inner):
                run()
            _wait(device)
            times[name].append((clock() - start) / inner)
    return {name: values[1:] for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
