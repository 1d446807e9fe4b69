"""What a transform is, what a mixing one is, and how several follow each other, with pixels or without."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from detkit.data.sample import Layout, Sample
from detkit.data.transforms.plan import Plan, render
from detkit.utils.seed import generator, key_for


class Transform(ABC):
    """Changes a sample without touching the one that it was given.

    ``training_only``: evaluation refuses it, since it hides objects, brings in others or changes sizes by chance.
    ``per_batch``: it draws once for all images of a batch. ``has_plan``: :meth:`lay` tells where objects go; a step
    that can only speak once it has seen the pixels has none. ``is_fixed``: a planned step that does the same whatever
    the key, as its attributes tell, so that what it leaves of an image may be kept for the next epoch.
    """

    training_only: bool = False
    per_batch: bool = False
    has_plan: bool = False
    is_fixed: bool = False

    @abstractmethod
    def __call__(self, sample: Sample, key: int) -> Sample:
        """The changed sample. All that is random follows from ``key``: the same key gives the same result anywhere."""

    def lay(self, layout: Layout, key: int) -> Layout:
        """Where the objects of ``layout`` are after this step: what a call with ``key`` does to all but the pixels.

        Here for a step that has no plan: it is run on a black image.
        """
        return self(Sample.of(np.zeros((*layout.size, 3), np.uint8), layout), key).layout


class PlannedTransform(Transform):
    """A step in two halves: where the image goes follows from its size and the key, and its pixels follow from that."""

    has_plan = True

    @abstractmethod
    def plan(self, size: tuple[int, int], key: int) -> Plan:
        """Where an image of ``size`` (h, w) px goes. All that is random follows from ``key``."""

    def render(self, image: np.ndarray, plan: Plan) -> np.ndarray:
        """The pixels uint8 (H, W, 3) of ``image`` as ``plan`` lays them."""
        return render(image, plan)

    def __call__(self, sample: Sample, key: int) -> Sample:
        plan = self.plan(sample.size, key)
        return sample if plan.is_idle else Sample.of(self.render(sample.image, plan), plan.move(sample.layout))

    def lay(self, layout: Layout, key: int) -> Layout:
        return self.plan(layout.size, key).move(layout)


class Pool(Protocol):
    """The images that a mixing step chooses from, in the ``epoch`` of the image that it changes."""

    epoch: int

    def __len__(self) -> int: ...

    def load(self, place: int, key: int) -> Sample:
        """Image number ``place`` after the steps before the first mixing one, which draw from ``key``."""
        ...

    def lay(self, place: int, key: int) -> Layout:
        """All of it but the pixels, without reading them."""
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
        """The places of the partners among ``num_images`` images; none if the sample is not to be mixed.

        Args:
            key: of the image, for this step.
            epoch: of the run, from 0.
            num_images: of the data set.
        """
        rng = generator(key, "partners")
        over = self.num_epochs is not None and epoch >= self.num_epochs
        if over or torch.rand((), generator=rng) >= self.p:
            return []
        return torch.randint(num_images, (self.num_partners,), generator=rng).tolist()

    @abstractmethod
    def mix(self, sample: Sample, partners: Sequence[Sample], key: int) -> Sample:
        """``sample`` and its ``partners`` as one; without partners, what this step leaves of ``sample`` alone.

        All that is random follows from ``key``.
        """

    def lay_mixed(self, layout: Layout, partners: Sequence[Layout], key: int) -> Layout:
        """What :meth:`mix` with ``key`` makes of the ``layout`` of the image and those of its ``partners``.

        Here for a step that has no plan: it is run on black images.
        """
        blank = [Sample.of(np.zeros((*each.size, 3), np.uint8), each) for each in (layout, *partners)]
        return self.mix(blank[0], blank[1:], key).layout

    def __call__(self, sample: Sample, key: int) -> Sample:
        raise ValueError(f"{type(self).__name__} mixes images: only a loader for training has others at hand")


@dataclass(frozen=True, slots=True)
class MixPlan:
    """Where several images go, in their order, and the objects that remain in their common frame.

    ``plans`` is shorter than the images where the others have no part in the result.
    """

    plans: tuple[Plan, ...]
    layout: Layout


class PlannedMixing(MixingTransform):
    """A mixing step in two halves: where the images go follows from their sizes, their boxes and the key."""

    has_plan = True

    @abstractmethod
    def plan(self, layouts: Sequence[Layout], key: int) -> MixPlan:
        """Where the image and its partners go; ``layouts`` is the image's alone if it is not to be mixed."""

    @abstractmethod
    def render(self, images: Sequence[np.ndarray], plans: Sequence[Plan]) -> np.ndarray:
        """Two or more ``images`` uint8 (h, w, 3) as one, laid as ``plans`` say."""

    def mix(self, sample: Sample, partners: Sequence[Sample], key: int) -> Sample:
        samples = [sample, *partners]
        plan = self.plan([each.layout for each in samples], key)
        if len(plan.plans) == 1:
            (alone,) = plan.plans
            return sample if alone.is_idle else Sample.of(render(sample.image, alone), plan.layout)
        return Sample.of(self.render([each.image for each in samples], plan.plans), plan.layout)

    def lay_mixed(self, layout: Layout, partners: Sequence[Layout], key: int) -> Layout:
        return self.plan([layout, *partners], key).layout


def apply(
    transforms: Sequence[Transform],
    sample: Sample,
    key: int,
    batch_key: int | None = None,
    pool: Pool | None = None,
    start: int = 0,
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
        start: the first steps that the sample has behind it.

    Raises:
        ValueError: a step refuses the sample, or a mixing one has no ``pool``.
    """
    for transform, own in itertools.islice(_with_keys(transforms, key, batch_key), start, None):
        if isinstance(transform, MixingTransform) and pool is not None:
            partners = [pool.load(place, k) for place, k in _partners(transform, own, pool)]
            sample = transform.mix(sample, partners, own)
        else:
            sample = transform(sample, own)
    return sample


def lay(
    transforms: Sequence[Transform],
    layout: Layout,
    key: int,
    batch_key: int | None = None,
    pool: Pool | None = None,
) -> Layout:
    """What :func:`apply` with the same arguments does to all but the pixels, of which none is read or written.

    Raises:
        ValueError: a mixing step has no ``pool``, or one without a plan refuses a black image.
    """
    for transform, own in _with_keys(transforms, key, batch_key):
        if isinstance(transform, MixingTransform) and pool is not None:
            partners = [pool.lay(place, k) for place, k in _partners(transform, own, pool)]
            layout = transform.lay_mixed(layout, partners, own)
        else:
            layout = transform.lay(layout, own)
    return layout


def unplanned(transforms: Sequence[Transform]) -> list[str]:
    """The steps, by class, of which only pixels tell where objects go: :func:`lay` runs them on black images."""
    return [type(transform).__name__ for transform in transforms if not transform.has_plan]


def before_mixing(transforms: Sequence[Transform]) -> Sequence[Transform]:
    """The steps that every single image passes through, partners included: those before the first mixing one."""
    first = next((i for i, t in enumerate(transforms) if isinstance(t, MixingTransform)), len(transforms))
    return transforms[:first]


def _with_keys(transforms: Sequence[Transform], key: int, batch_key: int | None) -> Iterator[tuple[Transform, int]]:
    seen: Counter[str] = Counter()
    for transform in transforms:
        name = type(transform).__name__
        base = batch_key if transform.per_batch and batch_key is not None else key
        yield transform, key_for(base, f"{name} {seen[name]}")
        seen[name] += 1


def _partners(transform: MixingTransform, key: int, pool: Pool) -> list[tuple[int, int]]:
    """Place and key of each partner of an image whose own key for ``transform`` is ``key``."""
    places = transform.choose(key, pool.epoch, len(pool))
    return [(place, key_for(key, f"partner {i}")) for i, place in enumerate(places)]
