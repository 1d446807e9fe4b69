"""From the data set to batches: decode, transform, check once, collate."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import get_worker_info

from detkit.config import LOADERS
from detkit.data.balance import Sampling
from detkit.data.cache import ImageCache
from detkit.data.collate import Collate, Item, Refusal
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.table import count_wanted
from detkit.data.decode import ImageError, naming
from detkit.data.pixels import Pixels
from detkit.data.sample import Layout, Sample
from detkit.data.samplers import TrainSampler, evaluation_batches
from detkit.data.transforms.base import Transform, apply, before_mixing, lay
from detkit.data.workers import Source, Workers
from detkit.structures import Batch, GroundTruth, ImageMeta
from detkit.utils.seed import derive_key, key_for

logger = logging.getLogger(__name__)

#: Between the numbers that seed what is drawn for an image's first and second time in an epoch: beyond any data set.
_COPIES_APART = 2**40

#: After so many unreadable images in a row the data set is taken for unreadable: a disk is gone, not a file.
MAX_REPLACEMENTS = 100


@LOADERS
class TrainLoader:
    """Endless batches for training; the same ones whatever the number of workers, and from any batch on.

    Args:
        dataset: what to read (run time).
        transforms: what happens to each image, in this order; mixing ones find their partners among the images of the
            data set, which the steps before the first of them prepare (run time).
        batch_size: images in a batch, over all processes together.
        num_workers: processes that load; 0 loads in the training process itself.
        size_divisor: padding makes height and width of a batch multiples of this.
        square: pad to a square.
        keep_empty: False leaves out images without a box to find (none at all, or crowds only).
        group_by_aspect: batches of upright and batches of lying images, as far as possible: less padding.
        on_bad_image: what to do about an image that cannot be decoded: "error", or "replace" it by the next one of the
            data set (logged once for each file).
        sampling: how often each image comes in an epoch, such as RepeatFactor for rare classes; null for once.
        cache: keeps decoded images, resized where the transforms begin with one size for all, for the next epoch; null
            for none.
        timeout: seconds to wait for a batch before a worker is taken to hang; 0 waits for ever.
        pin_memory: put batches into page-locked memory where a GPU is at hand, so that copies to it overlap.
        seed: seeds the order and all augmentation (run time).
        rank: number of this process (run time).
        world_size: number of processes (run time).

    Raises:
        ValueError: no image is left, or a number is out of range.
    """

    runtime_arguments = ("dataset", "transforms", "seed", "rank", "world_size")

    def __init__(
        self,
        *,
        dataset: DetectionDataset,
        transforms: Sequence[Transform],
        batch_size: int = 16,
        num_workers: int = 2,
        size_divisor: int = 32,
        square: bool = False,
        keep_empty: bool = True,
        group_by_aspect: bool = False,
        on_bad_image: Literal["error", "replace"] = "error",
        sampling: Sampling | None = None,
        cache: ImageCache | None = None,
        timeout: float = 300.0,
        pin_memory: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        chosen = range(len(dataset))
        if not keep_empty:
            chosen = np.flatnonzero(count_wanted(dataset.truths)).tolist()
        if not chosen:
            raise ValueError(f"{dataset.report.source}: no image has a box to find; keep_empty=true would keep them")
        is_upright = None
        if group_by_aspect:
            is_upright = np.array([h > w for h, w in (dataset.truths[i].size for i in chosen)])
        repeats = None if sampling is None else sampling(dataset.truths, len(dataset.categories))[np.array(chosen)]
        self._sampler = functools.partial(
            TrainSampler,
            num_images=len(chosen),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            is_upright=is_upright,
            repeats=repeats,
        )
        length = self._sampler().length  # refuses what is out of range now, not in the first step
        self.dataset = dataset
        self.batch_size = batch_size // world_size  # of this process
        self.num_images = len(chosen)
        self.batches_per_epoch = -(-length // batch_size)
        self.replaced: dict[str, str] = {}
        pixels = Pixels(dataset, transforms, cache, num_workers)
        self._source = _Source(dataset, transforms, chosen, pixels, seed, replace_bad=on_bad_image == "replace")
        self._workers = Workers(self._source, Collate(size_divisor, square), num_workers, timeout, pin_memory)

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Batches without end, from number ``start`` of the whole run on: to resume is ``iterate(batches_seen)``.

        ``replaced`` (file -> reason) grows as images are replaced.

        Raises:
            ValueError: an image or its boxes cannot be used; the message names the file.
            WorkerError: a worker died or hangs; the message names the images that were being loaded.
        """
        try:
            for batch, bad in self._workers.load(self._places(start)):
                for file, reason in bad:
                    if file not in self.replaced:
                        self.replaced[file] = reason
                        logger.warning("replaced by the next image: %s", reason)
                yield batch
        finally:
            self._source.pixels.tell()

    def lay(self, start: int = 0) -> Iterator[Batch]:
        """The batches of :meth:`iterate` before any image is read: same sizes, boxes and metas, on black pixels.

        Images that would have to be replaced are not known of.

        Raises:
            ValueError: boxes cannot be used; the message names the file.
        """
        return (self._workers.collate.without_pixels([*map(self._source.lay, batch)]) for batch in self._places(start))

    def _places(self, start: int) -> Iterator[list[Place]]:
        batches = enumerate(self._sampler(start=start), start)
        n = self.num_images
        return ([Place(epoch, i % n, number, i // n) for epoch, i in batch] for number, batch in batches)


@LOADERS
class EvalLoader:
    """Every image of the data set exactly once over all processes, in a fixed order; each can be mapped back.

    The batches do not depend on the number of processes, which take them in turn.

    Args:
        dataset: what to read (run time).
        transforms: what happens to each image, in this order; each must have an inverse, and none serve training only
            (run time).
        batch_size: images in a batch; each process has batches of that size.
        num_workers: processes that load; they stay for the next evaluation. 0 loads in this process.
        size_divisor: padding makes height and width of a batch multiples of this.
        square: pad to a square.
        cache: keeps decoded images, resized where the transforms begin so, for the next evaluation; null for none.
        timeout: seconds to wait for a batch before a worker is taken to hang; 0 waits for ever.
        pin_memory: put batches into page-locked memory where a GPU is at hand.
        rank: number of this process (run time).
        world_size: number of processes (run time).

    Raises:
        ValueError: a number is out of range, or a transform serves training only.
    """

    runtime_arguments = ("dataset", "transforms", "rank", "world_size")

    def __init__(
        self,
        *,
        dataset: DetectionDataset,
        transforms: Sequence[Transform],
        batch_size: int = 8,
        num_workers: int = 2,
        size_divisor: int = 32,
        square: bool = False,
        cache: ImageCache | None = None,
        timeout: float = 300.0,
        pin_memory: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size} must be positive and rank {rank} in [0, {world_size})")
        if refused := [type(t).__name__ for t in transforms if t.training_only]:
            raise ValueError(
                f"{', '.join(refused)} cannot stand in transform.val as it is: "
                "evaluation must see every image whole, by itself and at one size"
            )
        batches = evaluation_batches(len(dataset), batch_size, rank, world_size)
        self._batches = [[Place(0, i, 0) for i in batch] for batch in batches]
        num_workers = min(num_workers, len(self._batches))
        pixels = Pixels(dataset, transforms, cache, num_workers)
        self._source = _Source(dataset, transforms, range(len(dataset)), pixels, seed=0, needs_inverse=True)
        self._workers = Workers(self._source, Collate(size_divisor, square), num_workers, timeout, pin_memory)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        yield from (batch for batch, _ in self._workers.load(self._batches, keep=True))
        self._source.pixels.tell()

    def lay(self) -> Iterator[Batch]:
        """The same batches before any image is read: same sizes, boxes and metas, on black pixels."""
        return (self._workers.collate.without_pixels([*map(self._source.lay, batch)]) for batch in self._batches)

    def apart(self) -> list[list[int]]:
        """The places of the images in the batches that spare them most of the padding, where one would be mostly that.

        Raises:
            ImageError: a transform refuses the size of an image; the message names the file.
        """
        return self._workers.collate.apart([meta for batch in self.lay() for meta in batch.images.meta])


class Place(NamedTuple):
    """Where an image stands in the run: its epoch, its index among the images used, the number of its batch, and how
    often it has come in this epoch before."""

    epoch: int
    index: int
    batch: int
    copy: int = 0


class _Source(Source):
    """Place -> image, boxes and meta; what is drawn follows from the seed and the place alone."""

    def __init__(
        self,
        dataset: DetectionDataset,
        transforms: Sequence[Transform],
        indices: Sequence[int],
        pixels: Pixels,
        seed: int,
        replace_bad: bool = False,
        needs_inverse: bool = False,
    ) -> None:
        self.dataset = dataset
        self.transforms = transforms
        self.before_mixing = before_mixing(transforms)
        self.indices = indices
        self.pixels = pixels
        self.seed = seed
        self.replace_bad = replace_bad
        self.needs_inverse = needs_inverse

    def __getitem__(self, where: Place) -> Item | Refusal:
        try:
            return self._load(where)
        except ValueError as error:
            if get_worker_info() is not None and error.__cause__ is not None:
                error.add_note(traceback.format_exc())  # the cause does not travel between processes
            return Refusal(error)

    def file(self, index: int) -> str:
        return self.dataset.truths[self.indices[index]].file

    def _load(self, where: Place) -> Item:
        key, pool = self._drawn(where)
        sample, truth, bad = self.prepare(where.index, self.transforms, key, pool.batch_key, pool)
        return Item(sample, _meta(truth, sample.layout, key), (*bad, *pool.bad))

    def lay(self, where: Place) -> tuple[Layout, ImageMeta]:
        """What the image at ``where`` is but for its pixels, which are not read.

        Raises:
            ImageError: its boxes cannot be used; the message names the file.
        """
        key, pool = self._drawn(where)
        layout, truth = self.arrange(where.index, self.transforms, key, pool.batch_key, pool)
        return layout, _meta(truth, layout, key)

    def _drawn(self, where: Place) -> tuple[int, _Pool]:
        """The key of the image at ``where``, and the images that it may be mixed with."""
        key = derive_key(self.seed, where.epoch, self.indices[where.index] + where.copy * _COPIES_APART)
        batch_key = key_for(derive_key(self.seed, where.batch, 0), "batch")
        return key, _Pool(self, where.epoch, batch_key)

    def prepare(
        self, index: int, transforms: Sequence[Transform], key: int, batch_key: int, pool: _Pool | None = None
    ) -> tuple[Sample, GroundTruth, tuple[tuple[str, str], ...]]:
        """Image ``index`` as ``transforms`` leave it, its record, and (file, reason) of those that it replaces.

        Raises:
            ImageError: the image, or one that it is mixed with, cannot be used; the message names the file at fault.
        """
        with self._at_work(index):
            truth, image, bad = self._read(index)
            with naming(truth.file):
                sample = Sample.of(image, self.pixels.lay(Layout.from_truth(truth)))
                sample = apply(transforms, sample, key, batch_key, pool, start=len(self.pixels.first))
            if mistake := _find_wrong_pixels(sample.image) or self._find_mistake(sample.layout):
                raise ImageError(f"{truth.file}: {mistake}")
            return sample, truth, bad

    def arrange(
        self, index: int, transforms: Sequence[Transform], key: int, batch_key: int, pool: _Pool | None = None
    ) -> tuple[Layout, GroundTruth]:
        """Where the objects of image ``index`` are after ``transforms``, and its record.

        Raises:
            ImageError: its boxes, or those of one that it is mixed with, cannot be used.
        """
        truth = self.dataset.truths[self.indices[index]]
        with naming(truth.file):
            layout = lay(transforms, Layout.from_truth(truth), key, batch_key, pool)
        if mistake := self._find_mistake(layout):
            raise ImageError(f"{truth.file}: {mistake}")
        return layout, truth

    @contextmanager
    def _at_work(self, index: int) -> Iterator[None]:
        """Tell the main process that this worker loads ``index``, and afterwards what it loaded before."""
        worker = get_worker_info()
        if worker is None or self.busy_with is None:
            yield
            return
        before = int(self.busy_with[worker.id])
        self.busy_with[worker.id] = index
        try:
            yield
        finally:
            self.busy_with[worker.id] = before

    def _find_mistake(self, layout: Layout) -> str | None:
        """The value checks: once for every image, here, so that no model needs any."""
        boxes, labels = layout.boxes, layout.labels
        num_classes = len(self.dataset.categories)
        if not np.isfinite(boxes).all():
            return "the transforms left a box that is not finite"
        flat = ~(boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        if flat.any():
            return f"the transforms left a box without area: {boxes[flat][0].tolist()}"
        if layout.landmarks is not None and not np.isfinite(layout.landmarks.points).all():
            return "the transforms left a landmark that is not finite"
        if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
            return f"labels from {labels.min()} to {labels.max()} are not in [0, {num_classes})"
        if self.needs_inverse and layout.affine is None:
            steps = ", ".join(type(t).__name__ for t in self.transforms)
            return f"one of {steps} has no inverse: evaluation could not map boxes back"
        return None

    def _read(self, index: int) -> tuple[GroundTruth, np.ndarray, tuple[tuple[str, str], ...]]:
        bad: list[tuple[str, str]] = []
        for trial in range(min(len(self.indices), MAX_REPLACEMENTS)):
            place = self.indices[(index + trial) % len(self.indices)]
            truth = self.dataset.truths[place]
            try:
                return truth, self.pixels.read(place), tuple(bad)
            except ImageError as error:
                if not self.replace_bad:
                    raise
                bad.append((truth.file, str(error)))
        raise ImageError(f"{len(bad)} images in a row cannot be read; the first: {bad[0][1]}")


class _Pool:
    """What the mixing steps of one image choose from; ``bad`` gathers (file, reason) of partners that were replaced."""

    def __init__(self, source: _Source, epoch: int, batch_key: int) -> None:
        self.source = source
        self.epoch = epoch
        self.batch_key = batch_key
        self.bad: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.source.indices)

    def load(self, place: int, key: int) -> Sample:
        sample, _, bad = self.source.prepare(place, self.source.before_mixing, key, self.batch_key)
        self.bad.extend(bad)
        return sample

    def lay(self, place: int, key: int) -> Layout:
        return self.source.arrange(place, self.source.before_mixing, key, self.batch_key)[0]


def _meta(truth: GroundTruth, layout: Layout, key: int) -> ImageMeta:
    return ImageMeta(truth.image_id, truth.file, layout.size, truth.size, layout.affine, key)


def _find_wrong_pixels(image: np.ndarray) -> str | None:
    if image.dtype == np.uint8:
        return None
    # cast to it, pixels in 0..1 would be black without a word
    return f"the transforms left pixels of {image.dtype}, not uint8 in 0..255: the detector normalises"
