"""The columns of an evaluation in a file: all that is needed to score it again, without the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detkit.evaluation.columns import DetectionColumns, TruthColumns
from detkit.evaluation.summary import COCO_SETTINGS, FREQUENCIES, Metric, Settings, coco_metrics
from detkit.utils.files import atomic_write

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ScoredSet:
    """What was to be found and what was found.

    ``names``: of the K categories in the order of ``truth.category_ids``. ``max_detections``: the limits for each image
    and class. ``settings``: thresholds and areas. ``frequency``: how frequent each category is in training, if known.
    """

    truth: TruthColumns
    found: DetectionColumns
    names: tuple[str, ...]
    max_detections: tuple[int, int, int]
    settings: Settings = COCO_SETTINGS
    frequency: tuple[str, ...] | None = None

    @property
    def definitions(self) -> tuple[Metric, ...]:
        """The numbers that it is scored by."""
        return coco_metrics(self.max_detections, self.settings, grouped(self.frequency))

    def save(self, path: str | Path) -> None:
        """Write a compressed ``.npz``, whole or not at all; every number keeps its bits."""
        arrays = {f"truth_{name}": column for name, column in self.truth._asdict().items()}
        arrays |= {f"found_{name}": column for name, column in self.found._asdict().items()}
        arrays |= {"names": np.array(self.names, np.str_), "max_detections": np.array(self.max_detections)}
        if self.settings != COCO_SETTINGS:
            names, *bounds = zip(*self.settings.areas, strict=True)
            arrays |= {"iou_thresholds": np.array(self.settings.iou_thresholds)}
            arrays |= {"recall_thresholds": np.array(self.settings.recall_thresholds)}
            arrays |= {"area_names": np.array(names, np.str_), "area_bounds": np.array(bounds, np.float64)}
        if self.frequency is not None:
            arrays["frequency"] = np.array(self.frequency, np.str_)
        arrays["format"] = np.array(_FORMAT)
        atomic_write(path, lambda temporary: np.savez_compressed(temporary, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> ScoredSet:
        """Read what :meth:`save` has written.

        Raises:
            ValueError: there is no such file, or it is damaged or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                version = int(file["format"])
                if version == _FORMAT:
                    return cls._read(file)
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file") from None
        except Exception as error:  # zipfile, zlib and numpy's reader of headers raise what they like
            reason = str(error).partition(". ")[0] or type(error).__name__  # numpy goes on: let the file run code
            raise ValueError(f"{path}: damaged, or not the detections of an evaluation: {reason}") from error
        raise ValueError(f"{path}: format {version}; this detkit reads format {_FORMAT}")

    @classmethod
    def _read(cls, file: Mapping[str, np.ndarray]) -> ScoredSet:
        truth = TruthColumns(*(file[f"truth_{name}"] for name in TruthColumns._fields))
        found = DetectionColumns(*(file[f"found_{name}"] for name in DetectionColumns._fields))
        first, second, third = file["max_detections"].tolist()
        frequency = tuple(file["frequency"].tolist()) if "frequency" in file else None
        names = tuple(file["names"].tolist())
        return cls(truth, found, names, (first, second, third), _settings(file), frequency)


def grouped(frequency: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """The places of the categories of each frequency; None where it is not known."""
    if frequency is None:
        return None
    return {name: tuple(k for k, own in enumerate(frequency) if own == name) for name in FREQUENCIES}


def _settings(file: Mapping[str, np.ndarray]) -> Settings:
    if "iou_thresholds" not in file:
        return COCO_SETTINGS
    low, high = file["area_bounds"].tolist()
    areas = tuple(zip(file["area_names"].tolist(), low, high, strict=True))
    return Settings(tuple(file["iou_thresholds"].tolist()), tuple(file["recall_thresholds"].tolist()), areas)
