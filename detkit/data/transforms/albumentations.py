"""The only file that knows albumentations (2.0.8, the last MIT release), and the traps around it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from detkit.config import TRANSFORMS
from detkit.data.sample import Layout, Sample
from detkit.data.transforms.base import Transform

# The import asks the network for a newer version unless this is set; whoever imports albumentations later, as the
# config does for the transforms that it names, must find it set. The import itself takes seconds, so it waits.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


@TRANSFORMS
class Albumentations(Transform):
    """Transforms of the albumentations library, run in their order as one step.

    Boxes go with the image where a transform moves things; the way back to the original image is then lost, so such a
    step serves training only, and where boxes go is known only once it has run; landmarks are lost, too. Normalize and
    ToTensorV2 have no place here: the detector normalises.

    Args:
        transforms: albumentations' own transforms or compositions of them (``_target_: albumentations.CLAHE``).
        min_visibility: a box of which a smaller share of its area remains in the picture is left out.
        min_size: a box of which less than this remains (px, width or height) is left out.

    Raises:
        ValueError: something else stands in ``transforms``, or was given an argument that it does not have.
    """

    def __init__(self, *, transforms: Sequence[Any], min_visibility: float = 0.0, min_size: float = 1.0) -> None:
        import albumentations as A

        if not 0 <= min_visibility <= 1:
            raise ValueError(f"min_visibility must be in [0, 1], not {min_visibility}")
        if min_size <= 0:
            raise ValueError(f"min_size must be positive, not {min_size}")
        leaves = list(_leaves(transforms))
        self.moves_boxes = not all(isinstance(leaf, A.ImageOnlyTransform) for leaf in leaves)
        self.has_plan = not self.moves_boxes
        boxes = A.BboxParams(
            "pascal_voc",
            label_fields=["rows"],
            min_visibility=min_visibility,
            min_width=min_size,
            min_height=min_size,
        )
        self.compose = A.Compose(list(transforms), bbox_params=boxes if self.moves_boxes else None)

    def __call__(self, sample: Sample, key: int) -> Sample:
        # set_random_seed would give every transform a generator of its own with the same seed: all of those with p=0.5
        # would then act together or not at all. One generator for all keeps them independent.
        self.compose.set_random_state(np.random.default_rng(key), random.Random(key))
        if not self.moves_boxes:
            return replace(sample, image=_checked(self.compose(image=sample.image)["image"]))
        # A box 0.4 px over the edge raises, so clip; rounding can put it there again, so clip afterwards as well.
        boxes = _clip(sample.boxes, sample.size)
        result = self.compose(image=sample.image, bboxes=boxes, rows=np.arange(len(boxes)))
        image = _checked(result["image"])
        # Without boxes these may come back as empty lists, and row numbers as floats.
        rows = np.asarray(result["rows"], dtype=np.int64)
        moved = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
        return replace(sample.select(rows), image=image, boxes=_clip(moved, image.shape), affine=None, landmarks=None)

    def lay(self, layout: Layout, key: int) -> Layout:
        return super().lay(layout, key) if self.moves_boxes else layout


def _leaves(transforms: Sequence[Any]) -> Iterator[Any]:
    """The single transforms inside ``transforms`` and their compositions, each checked."""
    import albumentations as A

    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _leaves(transform.transforms)
        elif not isinstance(transform, A.BasicTransform):
            raise ValueError(f"{transform!r} is no transform of albumentations")
        else:
            # albumentations only warns of arguments that it does not know, and goes on without them.
            if unknown := getattr(transform, "invalid_args", None):
                raise ValueError(f"{type(transform).__name__} has no argument {', '.join(map(repr, unknown))}")
            yield transform


def _clip(boxes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    h, w = size[:2]
    return boxes.clip(0, np.array([w, h, w, h], dtype=np.float32))


def _checked(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{getattr(image, 'dtype', type(image).__name__)} of {tuple(getattr(image, 'shape', ()))}"
        raise ValueError(
            f"albumentations' transforms must leave a uint8 image (H, W, 3), not {what}: "
            "leave out Normalize and ToTensorV2, the detector normalises"
        )
    return image
