"""``tools/benchmark.py inference``: images per second of the recipes' detectors, beside torchvision's.

Weights are random, those of the classifiers too, and so is what is found: how long selection and NMS take may differ
from a trained detector's on pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import rich
import torch

from benchmarks.models import BCCD, RECIPES, SIZE, heavy_calls, recipe_detector, replay, torchvision_peer
from benchmarks.options import add_size, size_of
from benchmarks.shown import timing_table
from benchmarks.timing import clock_for, time_alternately
from benchmarks.training import made_images, unpadded
from detkit.app.assemble.parts import choose_device
from detkit.config.ranges import check_range


def benchmark_inference(
    name: str, batch: int, repeats: int, device: torch.device, threads: int | None, size: tuple[int, int] = SIZE
) -> Mapping[str, Sequence[float]]:
    """Seconds of a batch, pixels to detections, in evaluation mode and without gradients; and of its heavy calls.

    ``size`` (h, w) of the images, px.
    """
    images, _ = made_images(batch, size, 14, device)
    ours, theirs = recipe_detector(name).to(device).eval(), torchvision_peer(name, size)
    contestants: dict[str, Callable[[], object]] = {}
    with torch.no_grad():
        if theirs is not None:
            peer, pixels = theirs.to(device).eval(), unpadded(images)
            contestants["torchvision"] = lambda: peer(pixels)
        contestants["detkit"] = lambda: ours(images)
        calls = heavy_calls(lambda: ours(images))
        contestants["its convolutions and products"] = lambda: replay(calls)
        return time_alternately(contestants, repeats, device, clock_for(device, threads))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of :func:`benchmark_inference`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(BCCD), help="default: all but coco_r50")
    add_size(parser)
    parser.add_argument(
        "--batches", "--batch", type=int, nargs="+", default=[1, 4], help="images at once (default: 1 4)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds of one batch of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch; with 1 the process's own time is taken")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    check_range("--repeats", options.repeats, 1)
    check_range("--batches", min(options.batches), 1)
    check_range("--threads", options.threads, 1)
    size = size_of(options)
    device = choose_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for name in options.models:
        for batch in options.batches:
            times = benchmark_inference(name, batch, options.repeats, device, options.threads, size)
            rich.print(timing_table(times, f"{name}, {batch} of {size[1]} x {size[0]} px, predicted", batch))
