"""What an inspection of a model found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from detkit.analysis.cost import Cost
from detkit.analysis.receptive_field import Cover, LevelField


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One feature map: its ``stride`` by the neck, its field, the gradient (H, W) of its middle cell with the analytic
    field ``box`` of that cell, the effective side, and the sides of its anchors, all px of the network input."""

    stride: float
    field: LevelField
    window: LevelField
    gradient: Tensor | None
    effective: float | None
    anchors: tuple[float, ...]

    @property
    def cover(self) -> Cover:
        """The sizes that it covers."""
        size = self.field.size
        return Cover.of(self.stride, None if size is None else min(size), self.effective)


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What was found. ``input_size`` (H, W) px is padded; ``sides`` (N,) px of the boxes, None without data."""

    input_size: tuple[int, int]
    levels: tuple[Level, ...]
    costs: Mapping[str, Cost]
    sides: np.ndarray | None
    inputs: str
    notes: tuple[str, ...]
