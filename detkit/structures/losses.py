"""What a detector says about its error on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """``terms``: weighted scalars, the total is their sum. ``stats``: detached numbers to log, never summed."""

    terms: Mapping[str, Tensor]
    stats: Mapping[str, Tensor] = field(default_factory=dict)

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
        stats: dict[str, Tensor] = {}
        for part in parts:
            for into, values in ((terms, part.terms), (stats, part.stats)):
                twice = into.keys() & values.keys()
                if twice:
                    raise ValueError(f"loss names occur twice: {sorted(twice)}")
                into.update(values)
        return Losses(terms, stats)
