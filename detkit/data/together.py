"""Several data sets of the same classes as one, which still knows its parts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detkit.data.datasets.base import DataReport, DetectionDataset


class Together(DetectionDataset):
    """The images of each data set follow those of the one before, in its own order.

    Args:
        parts: name -> data set, at least one.

    Attributes:
        places: name -> the places of its images.

    Raises:
        ValueError: a part has other classes than the first; the message names it and tells the difference.
    """

    def __init__(self, parts: Mapping[str, DetectionDataset]) -> None:
        (first, whole), *others = parts.items()
        for name, other in others:
            if difference := whole.categories.difference(other.categories):
                raise ValueError(f"{name} has other classes than {first}: {difference}")
        self.categories = whole.categories
        self.truths = [truth for part in parts.values() for truth in part.truths]
        self.looked_in = [path for part in parts.values() for path in part.looked_in]
        self.places: dict[str, range] = {}
        for name, part in parts.items():
            start = sum(map(len, self.places.values()))
            self.places[name] = range(start, start + len(part))
        reports = [part.report for part in parts.values()]
        self.report = DataReport(
            ", ".join(report.source for report in reports),
            sum(report.num_images for report in reports),
            sum(report.num_boxes for report in reports),
            sum(report.num_trainable for report in reports),
            len(self.categories),
            tuple(finding for report in reports for finding in report.findings),
        )
        self._parts = dict(parts)

    @property
    def reader(self) -> type:
        return next(iter(self._parts.values())).reader

    def read(self, index: int) -> np.ndarray:
        name, places = next((name, places) for name, places in self.places.items() if index in places)
        return self._parts[name].read(index - places.start)
