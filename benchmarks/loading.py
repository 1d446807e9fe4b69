"""``tools/benchmark.py loading``: from files to batches, with and without the cache, beside torchvision's v2.

Both sides decode, scale the shorter side to a size, mirror by chance, move the boxes along, and pad to batches.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import rich
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from benchmarks.ops import WIDTH
from detkit.config.ranges import check_range
from detkit.data import CocoDataset, HorizontalFlip, ImageCache, ResizeShortestEdge, TrainLoader
from detkit.data.datasets.base import DetectionDataset
from detkit.utils.progress import track

#: Images of a batch; and by how much the longer side may exceed the shorter one, as in detectors' recipes.
_BATCH, _LONGEST = 4, 5 / 3


class Loading(NamedTuple):
    """One way to load, of ``num_images`` in each round.

    ``alone``: seconds of the process's own work in each round without workers; ``beside``: seconds that passed in each
    with one worker; ``left``: seconds of the main process's own work in these.
    """

    name: str
    num_images: int
    alone: Sequence[float]
    beside: Sequence[float]
    left: Sequence[float]


def benchmark_loading(dataset: DetectionDataset, size: int, repeats: int, gigabytes: float) -> list[Loading]:
    """Each way to load all images with a shorter side of ``size`` px; decoding alone, which has no worker, is last.

    The rounds of all ways follow each other in turn, after one that is not counted and fills the cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "torchvision v2": partial(_torchvision, dataset, size),
            "detkit": partial(_detkit, dataset, size, None),
            "detkit, cached": partial(_detkit, dataset, size, ImageCache(gigabytes=gigabytes, folder=folder)),
        }
        num_batches = len(dataset) // _BATCH
        running = {(name, workers): way(workers) for name, way in ways.items() for workers in (0, 1)}
        times: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in running}
        decoding = []
        for _ in track(range(repeats + 1), repeats + 1, f"loading at {size} px"):
            for key, batches in running.items():
                times[key].append(_spent(lambda batches=batches: _take(batches, num_batches)))
            decoding.append(_spent(lambda: [dataset.read(i) for i in range(num_batches * _BATCH)])[0])
        for batches in running.values():
            batches.close()  # type: ignore[attr-defined]
    rows = [
        Loading(
            name, num_batches * _BATCH, [own for own, _ in times[name, 0][1:]],
            [passed for _, passed in times[name, 1][1:]], [own for own, _ in times[name, 1][1:]],
        )
        for name in ways
    ]  # fmt: skip
    return [*rows, Loading("decoding alone", num_batches * _BATCH, decoding[1:], [], [])]


def loading_table(rows: Sequence[Loading], size: int) -> Table:
    """One row for each way: images per second, and how many times the first's."""
    table = Table(title=f"loading, shorter side {size} px, {rows[0].num_images} images a round", title_justify="left")
    for heading in ("", "images/s and core", "times as fast", "with a worker: images/s", "main process, ms an image"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    first = statistics.median(rows[0].alone)
    for name, num_images, alone, beside, left in rows:
        own = statistics.median(alone)
        with_worker = [f"{num_images / statistics.median(beside):.0f}"] if beside else [""]
        main = [f"{1e3 * statistics.median(left) / num_images:.2f}"] if left else [""]
        table.add_row(name, f"{num_images / own:.0f}", f"{first / own:.2f}", *with_worker, *main)
    return table


def _detkit(dataset: DetectionDataset, size: int, cache: ImageCache | None, workers: int) -> Iterator[Any]:
    transforms = [ResizeShortestEdge(short=(size,), long=int(size * _LONGEST)), HorizontalFlip()]
    return TrainLoader(
        dataset=dataset, transforms=transforms, batch_size=_BATCH, num_workers=workers, cache=cache
    ).iterate()


def _torchvision(dataset: DetectionDataset, size: int, workers: int) -> Iterator[Any]:
    loader = DataLoader(
        _Peer(dataset, size), _BATCH, shuffle=True, num_workers=workers, collate_fn=_padded, drop_last=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return (batch for _ in itertools.count() for batch in loader)


class _Peer(Dataset):
    """The images of ``dataset`` as torchvision's detection references load them."""

    def __init__(self, dataset: DetectionDataset, size: int) -> None:
        self.dataset = dataset
        self.transforms = v2.Compose([v2.Resize(size, max_size=int(size * _LONGEST)), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        truth = self.dataset.truths[index]
        image = Image(decode_image(truth.file, ImageReadMode.RGB))
        boxes = torch.from_numpy(truth.boxes).float()
        return self.transforms(image, BoundingBoxes(boxes, format=BoundingBoxFormat.XYWH, canvas_size=truth.size))  # pyright: ignore[reportCallIssue]


def _padded(items: Sequence[tuple[Any, Any]]) -> tuple[torch.Tensor, list[Any]]:
    h, w = (max(image.shape[axis] for image, _ in items) for axis in (1, 2))
    pixels = torch.zeros(len(items), 3, -(-h // 32) * 32, -(-w // 32) * 32, dtype=torch.uint8)
    for into, (image, _) in zip(pixels, items, strict=True):
        into[:, : image.shape[1], : image.shape[2]] = image
    return pixels, [boxes for _, boxes in items]


def _take(batches: Iterator[Any], number: int) -> None:
    for _ in range(number):
        next(batches)


def _spent(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of this process's own work, and seconds that passed."""
    own, passed = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - own, time.perf_counter() - passed


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of :func:`benchmark_loading`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="a data set in COCO's layout")
    parser.add_argument("--annotations", default="train.json", help="in it (default: %(default)s)")
    parser.add_argument("--images", default="images", help="the folder of its pictures (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 800], help="px of the shorter side")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all images (default: %(default)s)")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="room of the cache (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_range("--sizes", min(options.sizes), 1)
    check_range("--repeats", options.repeats, 1)
    torch.set_num_threads(1)  # a core is the measure
    cv2.setNumThreads(1)
    dataset = CocoDataset(root=options.root, annotations=options.annotations, images=options.images)
    if len(dataset) < _BATCH:
        raise ValueError(
            f"{Path(options.root) / options.annotations}: {len(dataset)} images, at least {_BATCH} are needed"
        )
    for size in options.sizes:
        rows = benchmark_loading(dataset, size, options.repeats, options.gigabytes)
        Console(width=max(rich.get_console().width, WIDTH)).print(loading_table(rows, size))
