"""Loaders for tests, and what breaks them."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence

import numpy as np
import torch

from detkit.data import CocoDataset, EvalLoader, HorizontalFlip, ResizeShortestEdge, TrainLoader, Transform
from detkit.structures import Batch

AUGMENT = (ResizeShortestEdge(short=(32, 40), long=80), HorizontalFlip())


def train(data, transforms: Sequence[Transform] = AUGMENT, **options) -> TrainLoader:
    options = {"batch_size": 4, "num_workers": 0} | options
    return TrainLoader(dataset=data, transforms=transforms, **options)


def evaluate(data, transforms: Sequence[Transform] = (), **options) -> EvalLoader:
    return EvalLoader(dataset=data, transforms=transforms, **({"batch_size": 4, "num_workers": 0} | options))


def take(loader: TrainLoader, number: int, start: int = 0) -> list[Batch]:
    iterator = loader.iterate(start)
    batches = list(itertools.islice(iterator, number))
    iterator.close()
    return batches


def assert_same(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.images.meta == b.images.meta
        assert torch.equal(a.images.pixels, b.images.pixels)
        for s, t in zip(a.targets, b.targets, strict=True):
            assert torch.equal(s.boxes, t.boxes)
            assert torch.equal(s.labels, t.labels)
            assert torch.equal(s.ignore, t.ignore)


def ids(batches: Sequence[Batch]) -> list[int]:
    return [meta.image_id for batch in batches for meta in batch.images.meta]


def damage(data: CocoDataset, *indices: int) -> list[str]:
    files = [data.truths[i].file for i in indices]
    for file in files:
        with open(file, "r+b") as stream:
            stream.truncate(200)
    return files


def no_children_left() -> bool:
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


class Broken(Transform):
    """Fails, dies or hangs at one image, as ``how`` says."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, sample, key):
        boxes, labels = sample.boxes, sample.labels
        if sample.size == (56, 40):
            if self.how == "raise":
                raise KeyError("no such thing")
            if self.how == "value":
                raise ValueError("too dark")
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "full":
                raise OSError(28, os.strerror(28), "/tmp/made")
            if self.how == "shared memory":
                raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")
            if self.how == "hang":
                time.sleep(3)
            if self.how == "float":
                return dataclasses.replace(sample, image=sample.image / np.float32(255))
            if self.how == "nan":
                boxes = np.full((1, 4), np.nan, np.float32)
            if self.how == "flat":
                boxes = np.array([[1, 1, 1, 5]], np.float32)
            if self.how == "label":
                boxes, labels = np.array([[1, 1, 4, 5]], np.float32), np.array([2])
            if boxes is not sample.boxes:
                labels = labels if self.how == "label" else np.zeros(1, int)
                return dataclasses.replace(sample, boxes=boxes, labels=labels, ignore=np.zeros(1, bool))
        return sample


UPRIGHT = r"(3|6|9|12)\.png"  # the images of 56 x 40 px
