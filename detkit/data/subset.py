"""A part of a data set: a share of its images, or all but one fold of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.table import TruthTable
from detkit.data.sample import trainable_boxes
from detkit.data.split import groups_of, split_groups
from detkit.data.writers import relative_names


@dataclass(frozen=True)
class Subset:
    """Which images of a data set a training sees; by their names, so that it is the same whatever their order.

    Shares of one seed are nested: the images of 0.25 are among those of 0.5. Whole groups are taken, see
    :func:`~detkit.data.split.groups_of`, as many as hold the share of the images.

    Args:
        share: of the images, above 0; of those that the folds leave.
        fold: the fold that is held out, from 0 on; null for none.
        folds: how many there are, at least 2.
        group: which images stay together: null, "folder" or a regular expression.
        seed: another one draws other images and folds.

    Raises:
        ValueError: a number is out of range; the message names the key.
    """

    share: float = 1.0
    fold: int | None = None
    folds: int | None = None
    group: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: must lie above 0, and be 1 at most, not {self.share:g}")
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"folds: must be 2 or more, not {self.folds}")
        if self.fold is not None and (self.folds is None or not 0 <= self.fold < self.folds):
            allowed = "needs folds" if self.folds is None else f"must be from 0 to {self.folds - 1}"
            raise ValueError(f"fold: {allowed}, not {self.fold}")
        if self.seed < 0:
            raise ValueError(f"seed: must be 0 or more, not {self.seed}")

    def folds_of(self, dataset: DetectionDataset) -> np.ndarray:
        """(I,) int64: the fold of each image, as even as the groups allow.

        Raises:
            ValueError: there are fewer groups than folds, or the rule does not match a name.
        """
        assert self.folds is not None
        groups = groups_of(relative_names(dataset), self.group)
        if len(set(groups)) < self.folds:
            raise ValueError(f"folds: {self.folds} cannot be made of {len(set(groups))} images or groups of them")
        fold = np.zeros(len(dataset), dtype=np.int64)
        shares = {str(i): 1 / self.folds for i in range(self.folds)}
        for name, places in split_groups(groups, shares, self.seed).items():
            fold[places] = int(name)
        return fold

    def places(self, dataset: DetectionDataset) -> np.ndarray:
        """(S,) int64: the images that it takes, ascending.

        Raises:
            ValueError: as :meth:`folds_of`.
        """
        kept = np.ones(len(dataset), dtype=bool) if self.fold is None else self.folds_of(dataset) != self.fold
        places = np.flatnonzero(kept)
        groups = np.array(groups_of(relative_names(dataset), self.group))[places]
        return places[_first_groups(groups.tolist(), self.share, self.seed)]

    def of(self, dataset: DetectionDataset) -> DetectionDataset:
        """The data set of those images alone.

        Raises:
            ValueError: as :meth:`folds_of`.
        """
        return ImagesOf(dataset, self.places(dataset))


class ImagesOf(DetectionDataset):
    """Some images of another data set, with all its classes.

    Args:
        dataset: where they are.
        places: (S,) int64, ascending, at least one.
    """

    def __init__(self, dataset: DetectionDataset, places: np.ndarray) -> None:
        self._dataset, self._places = dataset, places
        self.categories, self.looked_in, self.coco_file = dataset.categories, dataset.looked_in, dataset.coco_file
        whole = dataset.truths
        self.truths = whole.select(places) if isinstance(whole, TruthTable) else [whole[i] for i in places.tolist()]
        self.report = replace(
            dataset.report,  # its findings are about the whole
            source=f"{dataset.report.source} ({len(places)} of {len(dataset)} images)",
            num_images=len(places),
            num_boxes=sum(len(truth) for truth in self.truths),
            num_trainable=sum(int(trainable_boxes(truth)[1].sum()) for truth in self.truths),
        )

    @property
    def whole(self) -> DetectionDataset:
        return self._dataset.whole

    @property
    def reader(self) -> type:
        return self._dataset.reader

    def read(self, index: int) -> np.ndarray:
        return self._dataset.read(int(self._places[index]))


def _first_groups(groups: Sequence[str], share: float, seed: int) -> np.ndarray:
    """(S,) the places of the images of the first groups, in an order that the names and the seed give."""
    names = sorted(set(groups), key=lambda name: hashlib.sha256(f"{seed}|{name}".encode()).digest())
    rank = {name: i for i, name in enumerate(names)}
    of_image = np.array([rank[name] for name in groups])
    so_far = np.bincount(of_image).cumsum()
    num_groups = int(np.searchsorted(so_far, round(share * len(groups)))) + 1
    return np.flatnonzero(of_image < num_groups)
