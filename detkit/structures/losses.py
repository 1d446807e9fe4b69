"""What a detector says about its error on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Ratio(NamedTuple):
    """A stat that is a share, ``part`` of ``whole``, both scalars: over several batches each is summed, then divided.

    Where ``whole`` is 0 it has no value.
    """

    part: Tensor
    whole: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """``terms``: weighted scalars, the total is their sum.

    ``stats``: detached numbers to log, never summed: scalars, of which the mean over the images is logged, or ratios.
    """

    terms: Mapping[str, Tensor]
    stats: Mapping[str, Tensor | Ratio] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, term in self.terms.items():
            if term.ndim != 0:
                raise ValueError(f"loss term {name!r} must be a scalar, not {tuple(term.shape)}")

    @property
    def total(self) -> Tensor:
        """The scalar to minimise."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()

    @staticmethod
    def merge(*parts: Losses) -> Losses:
        """All terms and stats of ``parts``; a name that occurs twice is an error."""
        terms: dict[str, Tensor] = {}
        stats: dict[str, Tensor | Ratio] = {}
        for part in parts:
            for known, new in ((terms.keys(), part.terms.keys()), (stats.keys(), part.stats.keys())):
                if twice := known & new:
                    raise ValueError(f"loss names occur twice: {sorted(twice)}")
            terms.update(part.terms)
            stats.update(part.stats)
        return Losses(terms, stats)
