"""From the data set to batches: decode, transform, check once, collate."""

from __future__ import annotations

import functools
import logging
import signal
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from detkit.config import LOADERS
from detkit.data.datasets.base import DetectionDataset
from detkit.data.decode import ImageError
from detkit.data.sample import Sample, trainable_boxes
from detkit.data.samplers import TrainSampler, evaluation_indices
from detkit.data.transforms.base import Transform, apply
from detkit.structures import Batch, GroundTruth, ImageMeta, Images, Target
from detkit.utils.seed import derive_key

logger = logging.getLogger(__name__)

#: After so many unreadable images in a row the data set is taken for unreadable: a disk is gone, not a file.
MAX_REPLACEMENTS = 100


@LOADERS
class TrainLoader:
    """Endless batches for training; the same ones whatever the number of workers, and from any batch on.

    Args:
        dataset: what to read (run time).
        transforms: what happens to each image, in this order (run time).
        batch_size: images in a batch, over all processes together.
        num_workers: processes that load; 0 loads in the training process itself.
        size_divisor: padding makes height and width of a batch multiples of this.
        square: pad to a square.
        keep_empty: False leaves out images without a box to find (none at all, or crowds only).
        group_by_aspect: batches of upright and batches of lying images, as far as possible: less padding.
        on_bad_image: what to do about an image that cannot be decoded: "error", or "replace" it by the next one of the
            data set (logged once for each file).
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
        timeout: float = 300.0,
        pin_memory: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        chosen = range(len(dataset))
        if not keep_empty:
            chosen = [i for i, truth in enumerate(dataset.truths) if _num_wanted(truth)]
        if not chosen:
            raise ValueError(f"{dataset.report.source}: no image has a box to find; keep_empty=true would keep them")
        is_upright = None
        if group_by_aspect:
            is_upright = np.array([h > w for h, w in (dataset.truths[i].size for i in chosen)])
        self._sampler = functools.partial(
            TrainSampler,
            num_images=len(chosen),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            is_upright=is_upright,
        )
        self._sampler()  # refuses what is out of range now, not in the first step
        self.dataset = dataset
        self.batch_size = batch_size // world_size  # of this process
        self.batches_per_epoch = -(-len(chosen) // batch_size)
        self.replaced: dict[str, str] = {}
        source = _Source(dataset, transforms, chosen, seed, replace_bad=on_bad_image == "replace")
        self._workers = _Workers(source, _Collate(size_divisor, square), num_workers, timeout, pin_memory)

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Batches without end, from number ``start`` of the whole run on: to resume is ``iterate(batches_seen)``.

        ``replaced`` (file -> reason) grows as images are replaced.

        Raises:
            ValueError: an image or its boxes cannot be used; the message names the file.
            RuntimeError: a worker died or hangs; the message names the images that were being loaded.
        """
        for batch, bad in self._workers.load(self._sampler(start=start)):
            for file, reason in bad:
                if file not in self.replaced:
                    self.replaced[file] = reason
                    logger.warning("replaced by the next image: %s", reason)
            yield batch


@LOADERS
class EvalLoader:
    """Every image of the data set exactly once over all processes, in a fixed order; each can be mapped back.

    Args:
        dataset: what to read (run time).
        transforms: what happens to each image, in this order; each must have an inverse (run time).
        batch_size: images in a batch of one process.
        num_workers: processes that load; they stay for the next evaluation. 0 loads in this process.
        size_divisor: padding makes height and width of a batch multiples of this.
        square: pad to a square.
        timeout: seconds to wait for a batch before a worker is taken to hang; 0 waits for ever.
        pin_memory: put batches into page-locked memory where a GPU is at hand.
        rank: number of this process (run time).
        world_size: number of processes (run time).

    Raises:
        ValueError: a number is out of range.
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
        timeout: float = 300.0,
        pin_memory: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size} must be positive and rank {rank} in [0, {world_size})")
        indices = list(evaluation_indices(len(dataset), rank, world_size))
        self._batches = [
            [(0, i) for i in indices[start : start + batch_size]] for start in range(0, len(indices), batch_size)
        ]
        source = _Source(dataset, transforms, range(len(dataset)), seed=0, needs_inverse=True)
        num_workers = min(num_workers, len(self._batches))
        self._workers = _Workers(source, _Collate(size_divisor, square), num_workers, timeout, pin_memory)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self._workers.load(self._batches, keep=True))


class _Item(NamedTuple):
    """One loaded image, and (file, reason) of those that it replaces."""

    sample: Sample
    meta: ImageMeta
    bad: tuple[tuple[str, str], ...]


class _Refusal(NamedTuple):
    """What a worker sends instead of an image that the user must look at: raised there, it would arrive in disguise."""

    error: ValueError


class _Parcel(NamedTuple):
    """What a worker sends: the pixels of a batch as one tensor, and the rest as arrays.

    Every tensor costs a file descriptor on its way between processes; with one for each target a busy loader would meet
    the limit of 1024.
    """

    pixels: Tensor
    targets: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    metas: tuple[ImageMeta, ...]
    bad: tuple[tuple[str, str], ...]


class _Source(Dataset):
    """(epoch, index) -> image, boxes and meta; what is drawn follows from the seed and these two alone."""

    def __init__(
        self,
        dataset: DetectionDataset,
        transforms: Sequence[Transform],
        indices: Sequence[int],
        seed: int,
        replace_bad: bool = False,
        needs_inverse: bool = False,
    ) -> None:
        self.dataset = dataset
        self.transforms = transforms
        self.indices = indices
        self.seed = seed
        self.replace_bad = replace_bad
        self.needs_inverse = needs_inverse
        self.busy_with: Tensor | None = None  # for each worker the index that it is loading, or -1

    def __getitem__(self, where: tuple[int, int]) -> _Item | _Refusal:
        worker = get_worker_info()
        if worker is not None and self.busy_with is not None:
            self.busy_with[worker.id] = where[1]
        try:
            return self._load(*where)
        except ValueError as error:
            if worker is not None and error.__cause__ is not None:
                error.add_note(traceback.format_exc())  # the cause does not travel between processes
            return _Refusal(error)
        finally:
            if worker is not None and self.busy_with is not None:
                self.busy_with[worker.id] = -1

    def file(self, index: int) -> str:
        """The path of the image that ``index`` means."""
        return self.dataset.truths[self.indices[index]].file

    def _load(self, epoch: int, index: int) -> _Item:
        truth, image, bad = self._read(index)
        key = derive_key(self.seed, epoch, self.indices[index])
        try:
            sample = apply(self.transforms, Sample.from_truth(image, truth), key)
        except ValueError as error:
            raise ValueError(f"{truth.file}: {error}") from error
        except Exception as error:
            error.add_note(f"while transforming {truth.file}")
            raise
        if mistake := self._find_mistake(sample):
            raise ValueError(f"{truth.file}: {mistake}")
        meta = ImageMeta(truth.image_id, truth.file, sample.size, truth.size, sample.affine, key)
        return _Item(sample, meta, bad)

    def _find_mistake(self, sample: Sample) -> str | None:
        """The value checks: once for every image, here, so that no model needs any."""
        boxes, labels = sample.boxes, sample.labels
        num_classes = len(self.dataset.categories)
        if not np.isfinite(boxes).all():
            return "the transforms left a box that is not finite"
        flat = ~(boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        if flat.any():
            return f"the transforms left a box without area: {boxes[flat][0].tolist()}"
        if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
            return f"labels from {labels.min()} to {labels.max()} are not in [0, {num_classes})"
        if self.needs_inverse and sample.affine is None:
            steps = ", ".join(type(t).__name__ for t in self.transforms)
            return f"one of {steps} has no inverse: evaluation could not map boxes back"
        return None

    def _read(self, index: int) -> tuple[GroundTruth, np.ndarray, tuple[tuple[str, str], ...]]:
        bad: list[tuple[str, str]] = []
        for trial in range(min(len(self.indices), MAX_REPLACEMENTS)):
            place = self.indices[(index + trial) % len(self.indices)]
            truth = self.dataset.truths[place]
            try:
                return truth, self.dataset.read(place), tuple(bad)
            except ImageError as error:
                if not self.replace_bad:
                    raise
                bad.append((truth.file, str(error)))
        raise ImageError(f"{len(bad)} images in a row cannot be read; the first: {bad[0][1]}")


class _Collate:
    """Items -> parcel: one uint8 tensor (B, 3, H, W), padded with 0 at the right and the bottom."""

    def __init__(self, size_divisor: int, square: bool) -> None:
        if size_divisor < 1:
            raise ValueError(f"size_divisor must be positive, not {size_divisor}")
        self.size_divisor = size_divisor
        self.square = square

    def __call__(self, items: Sequence[_Item | _Refusal]) -> _Parcel | _Refusal:
        loaded: list[_Item] = []
        for item in items:
            if isinstance(item, _Refusal):
                return item
            loaded.append(item)
        h, w = (self._padded(max(item.meta.size[axis] for item in loaded)) for axis in (0, 1))
        h, w = (max(h, w), max(h, w)) if self.square else (h, w)
        pixels = torch.zeros(len(loaded), 3, h, w, dtype=torch.uint8)
        for planes, item in zip(pixels.numpy(), loaded, strict=True):
            for plane, channel in zip(planes, cv2.split(item.sample.image), strict=True):  # 3 times torch's permute
                plane[: channel.shape[0], : channel.shape[1]] = channel
        return _Parcel(
            pixels,
            [(item.sample.boxes, item.sample.labels, item.sample.ignore) for item in loaded],
            tuple(item.meta for item in loaded),
            tuple(bad for item in loaded for bad in item.bad),
        )

    def _padded(self, side: int) -> int:
        return -(-side // self.size_divisor) * self.size_divisor


class _Workers:
    """A DataLoader whose order comes from outside, and whose failures name images."""

    def __init__(self, source: _Source, collate: _Collate, num_workers: int, timeout: float, pin_memory: bool) -> None:
        if num_workers < 0 or timeout < 0:
            raise ValueError(f"num_workers {num_workers} and timeout {timeout} must not be negative")
        self.source = source
        self.collate = collate
        self.num_workers = num_workers
        self.timeout = timeout
        self.pin_memory = pin_memory
        self._kept: list[DataLoader] = []
        # At the interpreter's end living workers would be killed, and their folders stay behind in /tmp.
        weakref.finalize(self, self._kept.clear)

    def load(
        self, batches: Iterable[list[tuple[int, int]]], keep: bool = False
    ) -> Iterator[tuple[Batch, tuple[tuple[str, str], ...]]]:
        """The batches and the (file, reason) of the images replaced in each.

        Args:
            batches: (epoch, index) of each image.
            keep: the same ``batches`` will be asked for again: let the workers live.
        """
        loader = self._kept[0] if self._kept else self._loader(batches, keep)
        if keep:
            self._kept[:] = [loader]
        iterator = iter(loader)
        try:
            while True:
                parcel = next(iterator, None)
                if parcel is None:
                    return
                if isinstance(parcel, _Refusal):
                    raise parcel.error
                yield _unpack(parcel), parcel.bad
        except Exception as error:
            if self.source.busy_with is None:
                raise
            # The workers end with the last reference to them, and the frames of this process hold one; the traceback
            # of the worker itself, where there is one, stands in the message.
            self._kept.clear()
            error = error.with_traceback(None)
            if not isinstance(error, RuntimeError):
                raise error
            files = [self.source.file(i) for i in self.source.busy_with.tolist() if i >= 0]
            at_work = f"; images being loaded: {', '.join(files)}" if files else ""
            raise RuntimeError(f"loading a batch failed: {str(error).strip()}{at_work}") from error
        finally:
            del loader, iterator

    def _loader(self, batches: Iterable[list[tuple[int, int]]], keep: bool) -> DataLoader:
        if self.num_workers:
            self.source.busy_with = torch.full((self.num_workers,), -1).share_memory_()
        return DataLoader(
            self.source,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            timeout=self.timeout if self.num_workers else 0,
            worker_init_fn=_init_worker,
            persistent_workers=self.num_workers > 0 and keep,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            # Without a generator of its own it would draw from the global one, and resuming would not be bit-exact.
            generator=torch.Generator(),
        )


def _unpack(parcel: _Parcel) -> Batch:
    targets = tuple(Target(*map(torch.from_numpy, arrays)) for arrays in parcel.targets)
    batch = Batch(Images(parcel.pixels, tuple(parcel.metas)), targets)  # older torch pins tuples into lists
    return batch.pin_memory() if parcel.pixels.is_pinned() else batch


def _init_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers; they need not tell as well
    cv2.setNumThreads(0)


def _num_wanted(truth: GroundTruth) -> int:
    return int((trainable_boxes(truth)[1] & ~truth.crowd).sum())
