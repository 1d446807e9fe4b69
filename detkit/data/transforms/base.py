"""What a transform is, and how several follow each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

from detkit.data.sample import Sample
from detkit.utils.seed import generator


class Transform(ABC):
    """Changes a sample without touching the one that it was given."""

    @abstractmethod
    def __call__(self, sample: Sample, key: int) -> Sample:
        """The changed sample. All that is random follows from ``key``: the same key gives the same result anywhere."""


def apply(transforms: Sequence[Transform], sample: Sample, key: int) -> Sample:
    """Run ``transforms`` in their order.

    Each draws from a key of its own, derived from its class and how many of that class came before it: leaving one out
    does not change what the others draw.
    """
    seen: Counter[str] = Counter()
    for transform in transforms:
        name = type(transform).__name__
        sample = transform(sample, generator(key, f"{name} {seen[name]}").initial_seed())
        seen[name] += 1
    return sample
