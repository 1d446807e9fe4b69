"""Couplings: which object each box of noise is carried to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detkit.config import COUPLINGS

#: Deviation of centres and sizes, in units of the image, of boxes that stand for no object (DiffusionDet, section 3.3).
PADDING_DEVIATION = 1 / 6


class Coupled(NamedTuple):
    """Where N noises go: ``data`` (N, D), and the number (N,) of the object that each of it is, -1 for none."""

    data: Tensor
    object: Tensor


class Coupling(ABC):
    """What a flow needs to know of its coupling."""

    @abstractmethod
    def __call__(self, noise: Tensor, objects: Tensor, scale: float, draws: torch.Generator) -> Coupled:
        """Give each noise what it becomes.

        Args:
            noise: (N, 4) states, on the CPU.
            objects: (M, 4) states, on the CPU.
            scale: of the states, see :class:`detkit.models.flow.state.StateCoder`.
            draws: for all chance; the image's own.
        """


@COUPLINGS
class OptimalTransport(Coupling):
    """Every noise goes to an object, each of M objects to N / M of them, on ways that are short in sum.

    Objects are repeated to N, those with one more by chance, and assigned to the noises so that the sum of distances
    is least: ways of noise to data then cross less, and a flow of them is straighter (Tong et al., TMLR 2024, and
    Pooladian et al., ICML 2023, couple minibatches so; here it is the boxes of one image). More objects than noises:
    some have none.
    """

    def __call__(self, noise: Tensor, objects: Tensor, scale: float, draws: torch.Generator) -> Coupled:
        num = len(noise)
        if len(objects) == 0:
            return Coupled(padding(num, scale, draws).to(noise), torch.full((num,), -1))
        repeated = torch.randperm(len(objects), generator=draws).repeat(-(-num // len(objects)))[:num]
        row, column = linear_sum_assignment(torch.cdist(noise.double(), objects[repeated].double()).numpy())
        chosen = torch.empty(num, dtype=torch.int64)
        chosen[torch.from_numpy(row)] = repeated[torch.from_numpy(column)]
        return Coupled(objects[chosen], chosen)


@COUPLINGS
class Padded(Coupling):
    """DiffusionDet's (Chen et al., ICCV 2023, section 3.3): one noise for each object, the rest are for nothing.

    Which noise, chance says. What is nothing is drawn around the middle of the image. More objects than noises: as many
    as there are noises, by chance.
    """

    def __call__(self, noise: Tensor, objects: Tensor, scale: float, draws: torch.Generator) -> Coupled:
        data = padding(len(noise), scale, draws).to(noise)
        number = torch.full((len(noise),), -1)
        place = torch.randperm(len(noise), generator=draws)[: len(objects)]
        chosen = torch.randperm(len(objects), generator=draws)[: len(noise)]
        data[place], number[place] = objects[chosen], chosen
        return Coupled(data, number)


def padding(num: int, scale: float, draws: torch.Generator) -> Tensor:
    """States (``num``, 4) of boxes of no object: u ~ N(1/2, 1/6), at least a pixel or so of size."""
    unit = 0.5 + PADDING_DEVIATION * torch.randn(num, 4, generator=draws)
    unit[:, 2:] = unit[:, 2:].clamp(min=1e-4)
    return scale * (2 * unit - 1)
