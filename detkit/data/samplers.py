"""Which images stand in which batch: a pure function of the seed and the batch's number."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from detkit.utils.seed import derive_key, generator

#: Batches within which images are sorted by aspect. At most one batch in so many then mixes upright and lying images.
GROUPING_WINDOW = 64


class TrainSampler:
    """Endless batches of (epoch, index), from batch number ``start`` of the run on.

    The permutations of all epochs stand in one line, and batch b is the images b * batch_size, ... of it: a batch may
    run over the end of an epoch, each image comes once in an epoch, none is dropped, and any batch can be found without
    the ones before it. Each process takes its slice of the batch, so the line does not depend on their number.

    With ``repeats`` an image comes ``repeats[i]`` times in an epoch on average: the whole part of it for certain, and
    once more by chance, drawn anew for each epoch. Its second time in an epoch is numbered n + i, its third 2 n + i.
    All epochs have the same length, the sum of ``repeats`` rounded up, so that any batch can still be found alone.

    Args:
        num_images: n; the indices are 0..n-1.
        batch_size: images in a batch, over all processes together.
        seed: seeds each epoch's permutation.
        start: number of the first batch.
        rank: number of this process.
        world_size: number of processes; it must divide ``batch_size``.
        is_upright: (n,) bool. If given, a batch holds images of one orientation as far as possible: within each window
            of 64 batches they are sorted by it, so less is padding.
        repeats: (n,) from 0 on.

    Raises:
        ValueError: there are no images, or a number is out of range.
    """

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        is_upright: np.ndarray | None = None,
        repeats: np.ndarray | None = None,
    ) -> None:
        if num_images < 1 or (repeats is not None and not repeats.sum() > 0):
            raise ValueError("there are no images to draw batches from")
        if batch_size < 1 or start < 0:
            raise ValueError(f"batch_size {batch_size} must be positive and start {start} not negative")
        if not 0 <= rank < world_size or batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} must be a multiple of the {world_size} processes, and rank {rank} one of them"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.is_upright = is_upright
        self.length = num_images if repeats is None else math.ceil(repeats.sum())
        self._repeats = None if repeats is None else repeats * (self.length / repeats.sum())
        share = batch_size // world_size
        self._slice = slice(rank * share, (rank + 1) * share)
        self._orders: dict[int, np.ndarray] = {}
        self._window: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.start
        while True:
            yield [(int(epoch), int(index)) for epoch, index in self.batch(number)[self._slice]]
            number += 1

    def batch(self, number: int) -> np.ndarray:
        """(batch_size, 2) int64: epoch and index of each image in batch ``number``, of all processes."""
        if self.is_upright is None:
            return self._line(number * self.batch_size, self.batch_size)
        window, place = divmod(number, GROUPING_WINDOW)
        if self._window[0] != window:
            self._window = window, self._group(window, self.is_upright)
        return self._window[1][place]

    def _group(self, window: int, is_upright: np.ndarray) -> np.ndarray:
        length = GROUPING_WINDOW * self.batch_size
        line = self._line(window * length, length)
        line = line[np.argsort(is_upright[line[:, 1] % self.num_images], kind="stable")]
        batches = line.reshape(GROUPING_WINDOW, self.batch_size, 2)
        rng = generator(derive_key(self.seed, window, 0), "order of batches")
        return batches[torch.randperm(GROUPING_WINDOW, generator=rng).numpy()]

    def _line(self, start: int, length: int) -> np.ndarray:
        positions = np.arange(start, start + length)
        epochs, places = np.divmod(positions, self.length)
        indices = np.empty(length, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            indices[of_epoch] = self._order(epoch)[places[of_epoch]]
        return np.column_stack([epochs, indices])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # Two epochs at most are kept: a batch may reach from one into the next.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            rng = generator(derive_key(self.seed, epoch, 0), "order of images")
            order = torch.randperm(self.num_images, generator=rng).numpy()
            self._orders[epoch] = order if self._repeats is None else _repeated(order, self._repeats, rng)
        return self._orders[epoch]


def _repeated(order: np.ndarray, repeats: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """(L,) the images of an epoch, each ``repeats[i]`` times on average, L being their sum.

    Systematic sampling: the images lie in a random ``order`` on a line, each as long as it is to come often, and
    marks at distance 1 from a random start fall on it. So each comes the whole part of its number or once more.
    """
    length = round(repeats.sum())
    ends = repeats[order].cumsum().clip(max=length)
    start = torch.rand((), dtype=torch.float64, generator=rng).item()
    marks = np.floor(np.concatenate([[0.0], ends[:-1], [length]]) + start).astype(np.int64)
    counts = np.diff(marks)
    images = np.repeat(order, counts)
    copies = np.arange(len(images)) - np.repeat(marks[:-1], counts)
    return (images + len(order) * copies)[torch.randperm(len(images), generator=rng).numpy()]


def evaluation_batches(num_images: int, batch_size: int, rank: int, world_size: int) -> list[range]:
    """The batches that process ``rank`` of ``world_size`` evaluates: over all processes every image exactly once.

    Whole batches are dealt out in turn, since how far an image is padded, and with it what is found in it, depends on
    those beside it: so each stands in the batch that a single process would make.
    """
    starts = range(0, num_images, batch_size)[rank::world_size]
    return [range(start, min(start + batch_size, num_images)) for start in starts]
