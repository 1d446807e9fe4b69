"""The pixels of an image before anything is drawn by chance: from the cache, or from its file and into the cache."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
from torch.utils.data import get_worker_info

from detkit.data import decode
from detkit.data.cache import ImageCache
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.stored import SETTLED, Stamp
from detkit.data.sample import Layout
from detkit.data.transforms import plan
from detkit.data.transforms.base import PlannedTransform, Transform, lay
from detkit.structures import GroundTruth
from detkit.utils.log import logger


class Pixels:
    """Images by their number in ``dataset``, as ``first``, the steps that are the same for all keys, leave them.

    Args:
        dataset: what to read.
        transforms: all steps; without a cache ``first`` is none of them.
        cache: where images are kept.
        num_workers: processes that read.

    Raises:
        ValueError: the cache has no room for an image.
    """

    def __init__(
        self, dataset: DetectionDataset, transforms: Sequence[Transform], cache: ImageCache | None, num_workers: int
    ) -> None:
        self.first = () if cache is None else fixed_first(transforms)
        self._dataset, self._cache = dataset, cache
        # a row for each worker and one for the main process: found in the cache, and read
        self._counts = torch.zeros(num_workers + 1, 2, dtype=torch.int64).share_memory_()
        self._told = ""
        if cache is not None:
            self._work = _work_on(dataset.reader, self.first)
            self._check_room(cache)

    def read(self, index: int) -> np.ndarray:
        """The image of ``dataset.truths[index]``, uint8 (H, W, 3) RGB.

        Raises:
            ImageError: it cannot be decoded.
        """
        if self._cache is None:
            return self._dataset.read(index)
        truth = self._dataset.truths[index]
        stamp = Stamp.of(Path(truth.file))
        key = None if stamp is None else self._key(truth, stamp)
        image = None if key is None else self._cache.find(key)
        self._count(image is not None)
        if image is not None:
            return image
        image = self._made(index)
        if key is not None and stamp is not None and _is_settled(truth.file, stamp):
            self._cache.keep(key, image)
        return image

    def lay(self, layout: Layout) -> Layout:
        """Where the objects of ``layout`` are after the first steps."""
        return lay(self.first, layout, key=0)

    def tell(self) -> None:
        """Log the share of the images since the last call that came from the cache, unless it is as before."""
        if self._cache is None:
            return
        found, read = self._counts.sum(dim=0).tolist()
        self._counts.zero_()
        text = f"{found / max(1, found + read):.1%}"
        if found + read and text != self._told:
            logger.info("image cache: %s of %d images came from %s", text, found + read, self._cache.path)
            self._told = text

    def _made(self, index: int) -> np.ndarray:
        image = self._dataset.read(index)
        with decode.naming(self._dataset.truths[index].file):
            for step in self.first:
                where = step.plan((image.shape[0], image.shape[1]), 0)
                image = image if where.is_idle else step.render(image, where)
        return image

    def _key(self, truth: GroundTruth, stamp: Stamp) -> bytes:
        parts = [self._work, os.path.abspath(truth.file), truth.size, stamp.size, stamp.mtime_ns, stamp.ctime_ns]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()

    def _count(self, found: bool) -> None:
        worker = get_worker_info()
        self._counts[-1 if worker is None else worker.id, 0 if found else 1] += 1

    def _check_room(self, cache: ImageCache) -> None:
        """Say what is kept and whether it all finds room.

        Raises:
            ValueError: one image does not.
        """
        total = 0
        sizes: dict[tuple[int, int], tuple[int, int]] = {}
        for truth in self._dataset.truths:
            if truth.size not in sizes:
                sizes[truth.size] = self.lay(Layout.empty(truth.size)).size
                if not cache.holds(sizes[truth.size]):
                    h, w = sizes[truth.size]
                    raise ValueError(
                        f"cache.gigabytes={cache.bound / 1e9:g} has no room for {truth.file}, which at {w} x {h} px "
                        f"takes {cache.size_of((h, w)) / 1e9:.3g} GB"
                    )
            total += cache.size_of(sizes[truth.size])
        steps = "decoded and resized" if self.first else "decoded"
        logger.info(
            "image cache: images are kept %s in %s; all %d take %.3g GB of %.3g",
            *(steps, cache.path, len(self._dataset), total / 1e9, cache.bound / 1e9),
        )


def fixed_first(transforms: Sequence[Transform]) -> tuple[PlannedTransform, ...]:
    """The first of the steps up to one that draws by chance."""
    first: list[PlannedTransform] = []
    for transform in transforms:
        if not (isinstance(transform, PlannedTransform) and transform.is_fixed):
            break
        first.append(transform)
    return tuple(first)


def _work_on(reader: type, steps: Sequence[PlannedTransform]) -> str:
    """A digest of all but the file that decides what becomes of its pixels: code, versions and options."""
    code = [inspect.getsource(decode), inspect.getsource(plan), _code(reader), *(_code(type(step)) for step in steps)]
    options = [repr(sorted(vars(step).items())) for step in steps]
    versions = [cv2.__version__, PIL.__version__]
    return hashlib.blake2b(json.dumps([code, options, versions]).encode()).hexdigest()


def _code(cls: type) -> str:
    """Name and source of ``cls``; of one that was typed in, the name."""
    try:
        return f"{cls.__module__}.{cls.__qualname__}: {inspect.getsource(cls)}"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"


def _is_settled(file: str, stamp: Stamp) -> bool:
    """Whether ``file`` was not written to while it was read, nor so shortly before that its times need not tell."""
    return time.time() - stamp.changed > SETTLED and Stamp.of(Path(file)) == stamp
