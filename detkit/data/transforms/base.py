"""What a transform is, what a mixing one is, and how several follow each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch

from detkit.data.sample import Sample
from detkit.utils.seed import generator


class Transform(ABC):
    """Changes a sample without touching the one that it was given.

    ``training_only``: evaluation refuses it, since it hides objects, brings in others or changes sizes by chance.
    ``per_batch``: it draws once for all images of a batch.
    """

    training_only: bool = False
    per_batch: bool = False

    @abstractmethod
    def __call__(self, sample: Sample, key: int) -> Sample:
        """The changed sample. All that is random follows from ``key``: the same key gives the same result anywhere."""


class Pool(Protocol):
    """The images that a mixing step chooses from, in the ``epoch`` of the image that it changes."""

    epoch: int

    def __len__(self) -> int: ...

    def load(self, place: int, key: int) -> Sample:
        """Image number ``place`` after the steps before the first mixing one, which draw from ``key``."""
        ...


class MixingTransform(Transform):
    """Changes a sample with the help of ``num_partners`` other images, its partners.

    Which those are, follows from the key and the number of images alone. The image itself may be among them, so that a
    data set of one image will do. The sample's id and file stay those of the first image.

    Args:
        p: share of the images that are mixed.
        num_epochs: mix in so many epochs from the start of the run, and not in those after them; null: in all.

    Raises:
        ValueError: a number is out of range.
    """

    training_only = True
    num_partners: int

    def __init__(self, *, p: float, num_epochs: int | None) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], not {p}")
        if num_epochs is not None and num_epochs < 0:
            raise ValueError(f"num_epochs must not be negative, not {num_epochs}")
        self.p = p
        self.num_epochs = num_epochs

    def choose(self, key: int, epoch: int, num_images: int) -> list[int]:
        """The places of the partners among ``num_images`` images; none if the sample is not to be mixed."""
        rng = generator(key, "partners")
        over = self.num_epochs is not None and epoch >= self.num_epochs
        if over or torch.rand((), generator=rng) >= self.p:
            return []
        return torch.randint(num_images, (self.num_partners,), generator=rng).tolist()

    @abstractmethod
    def mix(self, sample: Sample, partners: Sequence[Sample], key: int) -> Sample:
        """``sample`` and its ``partners`` as one; without partners, what this step leaves of ``sample`` alone."""

    def __call__(self, sample: Sample, key: int) -> Sample:
        raise ValueError(f"{type(self).__name__} mixes images: only a loader for training has others at hand")


def apply(
    transforms: Sequence[Transform],
    sample: Sample,
    key: int,
    batch_key: int | None = None,
    pool: Pool | None = None,
) -> Sample:
    """Run ``transforms`` in their order.

    Each draws from a key of its own, derived from its class and how many of that class came before it: leaving one out
    does not change what the others draw.

    Args:
        transforms: the steps.
        sample: what they change.
        key: of the image.
        batch_key: of its batch, for the steps that draw once for a batch; None: ``key``.
        pool: where mixing steps find partners.

    Raises:
        ValueError: a step refuses the sample, or a mixing one has no ``pool``.
    """
    seen: Counter[str] = Counter()
    for transform in transforms:
        name = type(transform).__name__
        base = batch_key if transform.per_batch and batch_key is not None else key
        own = generator(base, f"{name} {seen[name]}").initial_seed()
        seen[name] += 1
        if isinstance(transform, MixingTransform) and pool is not None:
            places = transform.choose(own, pool.epoch, len(pool))
            keys = (generator(own, f"partner {i}").initial_seed() for i in range(len(places)))
            partners = [pool.load(place, k) for place, k in zip(places, keys, strict=True)]
            sample = transform.mix(sample, partners, own)
        else:
            sample = transform(sample, own)
    return sample


def before_mixing(transforms: Sequence[Transform]) -> Sequence[Transform]:
    """The steps that every single image passes through, partners included: those before the first mixing one."""
    first = next((i for i, t in enumerate(transforms) if isinstance(t, MixingTransform)), len(transforms))
    return transforms[:first]
