"""A data set in which several classes are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from detkit.data.datasets.base import DetectionDataset
from detkit.structures import Categories


class MergedClasses(DetectionDataset):
    """Another data set with some of its classes joined; the others stay.

    A new class stands where the first of its old ones stood, and has its id.

    Args:
        dataset: where the images are.
        merge: name of each new class -> names of the old ones.

    Raises:
        ValueError: a name is unknown, is in two new classes, or would be there twice.
    """

    def __init__(self, dataset: DetectionDataset, merge: Mapping[str, Sequence[str]]) -> None:
        old = dataset.categories
        joined: dict[str, str] = {}
        for name, parts in merge.items():
            if not parts:
                raise ValueError(f"{name}: is of no class: list those that it joins")
            for part in parts:
                if part not in old.names:
                    raise ValueError(f"{name}: the data has no class {part!r}, but {', '.join(old.names)}")
                if joined.setdefault(part, name) != name:
                    raise ValueError(f"{name}: {part!r} is in {joined[part]} already")
        if apart := [name for name in merge if name in old.names and joined.get(name) != name]:
            raise ValueError(f"{apart[0]}: there is such a class already: list it too, or choose another name")
        new_names = [joined.get(name, name) for name in old.names]
        names = tuple(dict.fromkeys(new_names))
        self._dataset = dataset
        self.categories = Categories(names, tuple(old.ids[new_names.index(n)] for n in names), old.landmarks)
        label = np.array([names.index(name) for name in new_names])
        self.truths = [replace(truth, labels=label[truth.labels]) for truth in dataset.truths]
        self.looked_in = dataset.looked_in
        self.report = replace(dataset.report, num_classes=len(names))

    @property
    def reader(self) -> type:
        return self._dataset.reader

    def read(self, index: int) -> np.ndarray:
        return self._dataset.read(index)
