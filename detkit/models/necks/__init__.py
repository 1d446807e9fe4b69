"""Necks: they turn pixels into the pyramid that a head reads, by running the backbone."""

from detkit.models.necks.fpn import FPN
from detkit.models.necks.image_pyramid import ImagePyramid
from detkit.models.necks.single_level import SingleLevel
from detkit.models.necks.upsample import Upsample

__all__ = ["FPN", "ImagePyramid", "SingleLevel", "Upsample"]
