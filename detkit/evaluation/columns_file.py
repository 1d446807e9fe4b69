"""The columns of an evaluation in a file: all that is needed to score it again, without the data set."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detkit.evaluation.columns import DetectionColumns, TruthColumns
from detkit.utils.files import atomic_write

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ScoredSet:
    """What was to be found and what was found.

    ``names``: of the K categories in the order of ``truth.category_ids``. ``max_detections``: the limits for each image
    and class.
    """

    truth: TruthColumns
    found: DetectionColumns
    names: tuple[str, ...]
    max_detections: tuple[int, int, int]

    def save(self, path: str | Path) -> None:
        """Write a compressed ``.npz``, whole or not at all; every number keeps its bits."""
        arrays = {f"truth_{name}": column for name, column in self.truth._asdict().items()}
        arrays |= {f"found_{name}": column for name, column in self.found._asdict().items()}
        arrays |= {"names": np.array(self.names, np.str_), "max_detections": np.array(self.max_detections)}
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
                if int(file["format"]) != _FORMAT:
                    raise ValueError(f"{path}: format {file['format']}; this detkit reads format {_FORMAT}")
                truth = TruthColumns(*(file[f"truth_{name}"] for name in TruthColumns._fields))
                found = DetectionColumns(*(file[f"found_{name}"] for name in DetectionColumns._fields))
                first, second, third = file["max_detections"].tolist()
                return cls(truth, found, tuple(file["names"].tolist()), (first, second, third))
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file") from None
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: damaged, or not the detections of an evaluation: {error}") from error
