"""What a data set is to the rest of detkit, and the report of what was found in its files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detkit.structures import Categories, GroundTruth


class DetectionDataset(ABC):
    """Images with boxes, checked once when the data set is opened.

    ``categories`` are the classes; ``truths`` holds one record per image, sorted by image id, images without boxes
    included; ``report`` tells what the check found; ``looked_in`` are the paths of the annotations, for messages;
    ``coco_file`` is the JSON file in COCO's form that holds them, None where there is none.
    """

    categories: Categories
    truths: Sequence[GroundTruth]
    report: DataReport
    looked_in: Sequence[str] = ()
    coco_file: str | None = None

    def __len__(self) -> int:
        return len(self.truths)

    @property
    def whole(self) -> DetectionDataset:
        """The data set that this one is a part of: itself, unless it shows some images of another."""
        return self

    @property
    def reader(self) -> type:
        """The class whose code turns the file of an image into its pixels."""
        return type(self)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The image of ``truths[index]`` as uint8 (H, W, 3) RGB.

        Raises:
            ImageError: it cannot be decoded, or its size is not that of the annotations; the message names the file.
        """


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing that the check found: how often, what is done about it, and the first few cases."""

    problem: str
    consequence: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = "; ..." if self.count > len(self.examples) else ""
        return f"{self.problem}: {self.count} ({self.consequence}): {'; '.join(self.examples)}{more}"


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a data set holds and what is remarkable in it; ``str()`` gives it to a reader.

    ``num_boxes`` counts every annotation that was kept; ``num_trainable`` those that become part of a Target, crowds
    included. The difference is told in ``findings``.
    """

    source: str
    num_images: int
    num_boxes: int
    num_trainable: int
    num_classes: int
    findings: tuple[Finding, ...]

    def count(self, problem: str) -> int:
        """How often ``problem`` occurs."""
        return next((f.count for f in self.findings if f.problem == problem), 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        findings = [asdict(f) | {"examples": list(f.examples)} for f in self.findings]
        return asdict(self) | {"findings": findings}

    def __str__(self) -> str:
        head = f"{self.source}: images: {self.num_images}, boxes: {self.num_boxes}, classes: {self.num_classes}"
        return "\n  ".join([head, *map(str, self.findings)])
