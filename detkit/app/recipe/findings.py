"""What of a data set a recipe rests on, as plain numbers; no network runs, and hardly an image is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkit.app.assemble.objects import refuse_nothing_to_learn
from detkit.app.inspect.data import count
from detkit.data.at_scale import at_input_scale
from detkit.data.datasets.base import DetectionDataset
from detkit.data.transforms import ResizeFit

#: Objects are measured once in images of this longer side, px, and then scaled.
_MEASURED = 1024

#: Images that are read to see whether the set is grey.
_READ = 8


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """Of N objects in I images of K classes; crowds and boxes without area are left out.

    Attributes:
        names: of the classes.
        boxes, images: (K,) of each class, how many boxes, and images that show it.
        per_image: (I,) boxes in each image.
        long_sides: (I,) px, the longer side of each image.
        aspect: mean of shorter / longer side.
        sides: (N,) root of each box's area as a share of the longer side of its image.
        own_sides: (N,) the same in px of the original.
        num_val: images to measure by; 0 without any.
        val_boxes: (K,) boxes of each class among them.
        num_shared: how many of them are training images too.
        is_grey: whether the images that were read have three equal channels.
    """

    names: tuple[str, ...]
    boxes: np.ndarray
    images: np.ndarray
    per_image: np.ndarray
    long_sides: np.ndarray
    aspect: float
    sides: np.ndarray
    own_sides: np.ndarray
    num_val: int
    val_boxes: np.ndarray
    num_shared: int
    is_grey: bool

    @property
    def num_images(self) -> int:
        """Images to learn from."""
        return len(self.per_image)

    @property
    def long_side(self) -> int:
        """The median longer side, px."""
        return round(float(np.median(self.long_sides)))

    def side(self, share: float, size: int | None) -> float:
        """The side in px below which a ``share`` of the objects is, in images of the longer side ``size`` px or, None,
        of their own."""
        return float(np.quantile(self._at(size), share))

    def share_below(self, side: float, size: int | None) -> float:
        """The share of the objects that are smaller than ``side`` px there; see :meth:`side`."""
        return float((self._at(size) < side).mean())

    def megapixels(self, size: int) -> float:
        """Of an image whose longer side is ``size`` px, on average."""
        return size * size * self.aspect / 1e6

    def _at(self, size: int | None) -> np.ndarray:
        return self.own_sides if size is None else self.sides * size


def look(train: DetectionDataset, val: DetectionDataset | None) -> Findings:
    """The findings of ``train``, and of ``val`` what a recipe must know.

    Raises:
        ConfigError: there is not one box to learn from.
        ImageError: an image cannot be read.
    """
    refuse_nothing_to_learn(train)
    classes = count(train)["classes"]
    sizes = np.array([truth.size for truth in train.truths], float)
    files = {truth.file for truth in train.truths}
    return Findings(
        names=train.categories.names,
        boxes=np.array([row["boxes"] for row in classes]),
        images=np.array([row["images"] for row in classes]),
        per_image=np.array([int((~truth.crowd).sum()) for truth in train.truths]),
        long_sides=sizes.max(axis=1),
        aspect=float((sizes.min(axis=1) / sizes.max(axis=1)).mean()),
        sides=_roots(at_input_scale(train, [ResizeFit(size=_MEASURED)]).boxes) / _MEASURED,
        own_sides=_roots(at_input_scale(train, []).boxes),
        num_val=0 if val is None else len(val),
        val_boxes=np.zeros(len(classes), int) if val is None else _boxes_of_classes(val),
        num_shared=0 if val is None else sum(truth.file in files for truth in val.truths),
        is_grey=_is_grey(train),
    )


def _roots(boxes: np.ndarray) -> np.ndarray:
    w, h = (boxes[:, 2:] - boxes[:, :2]).astype(float).T
    return np.sqrt(w * h)


def _boxes_of_classes(dataset: DetectionDataset) -> np.ndarray:
    return np.array([row["boxes"] for row in count(dataset)["classes"]])


def _is_grey(dataset: DetectionDataset) -> bool:
    """Whether images from all over the data set have three equal channels."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, _READ).round().astype(int))
    return all(bool((image == image[..., :1]).all()) for image in (dataset.read(int(i)) for i in chosen))


def rarest(findings: Findings, below: int) -> Sequence[tuple[str, int]]:
    """Name and boxes of each class with fewer than ``below`` boxes, the rarest first."""
    rows = zip(findings.names, findings.boxes.tolist(), strict=True)
    return sorted((row for row in rows if row[1] < below), key=lambda row: row[1])
