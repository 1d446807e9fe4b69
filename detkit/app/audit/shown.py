"""What the transforms leave of a data set's objects in an epoch: tiles show some and cut some, mosaics repeat them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from detkit.data.datasets.base import DetectionDataset
from detkit.data.sample import Layout
from detkit.structures import Batch


class Shown:
    """Counts objects in the batches that pass through it, beside those of the images that they are made of."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.truths = {truth.image_id: truth for truth in dataset.truths}
        self.num_images = self.num_empty = 0
        self.objects, self.crowds = 0, 0
        self.to_find, self.to_ignore = 0, 0
        self.points, self.points_shown = 0, 0

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches."""
        for batch in batches:
            for meta, target in zip(batch.images.meta, batch.targets, strict=True):
                layout = Layout.from_truth(self.truths[meta.image_id])
                ignore = layout.ignore
                if layout.landmarks is not None:
                    self.points += int(layout.landmarks.is_labelled[~ignore].sum())
                if (points := target.wanted.landmarks) is not None:
                    self.points_shown += int((points[..., 2] > 0).sum())
                self.num_images += 1
                self.objects, self.crowds = self.objects + int((~ignore).sum()), self.crowds + int(ignore.sum())
                wanted = int((~target.ignore).sum())
                self.to_find, self.to_ignore = self.to_find + wanted, self.to_ignore + len(target) - wanted
                self.num_empty += wanted == 0 and not ignore.all()
            yield batch

    def to_dict(self) -> dict[str, int]:
        """Plain values: ``emptied`` images had objects to be found, and show none; ``landmarks`` are labelled."""
        return {
            "images": self.num_images, "emptied": self.num_empty, "objects": self.objects, "crowds": self.crowds,
            "to_find": self.to_find, "to_ignore": self.to_ignore,
            "landmarks": self.points, "landmarks_shown": self.points_shown,
        }  # fmt: skip

    def in_words(self) -> list[str]:
        """A line where the transforms show other objects than the images have, and one for landmarks that are there."""
        return [*self._of_objects(), *self._of_landmarks()]

    def _of_landmarks(self) -> list[str]:
        if not self.points:
            return []
        return [f"Of {self.points} labelled landmarks the transforms show {self.points_shown} in an epoch"]

    def _of_objects(self) -> list[str]:
        if (self.to_find, self.to_ignore) == (self.objects, self.crowds):
            return []
        ignored = f"; {self.to_ignore} more are there to be ignored (the images have {self.crowds} such)"
        empty = f"; {self.num_empty} of {self.num_images} images show none of theirs" if self.num_empty else ""
        return [
            f"In an epoch the transforms show {self.to_find} objects to find, of images that have {self.objects}"
            f"{ignored if self.to_ignore or self.crowds else ''}{empty}"
        ]
