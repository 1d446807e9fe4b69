"""Necks: they turn pixels into the pyramid that a head reads, by running the backbone."""

from detkit.models.necks.fpn import FPN
from detkit.models.necks.single_level import SingleLevel

__all__ = ["FPN", "SingleLevel"]
