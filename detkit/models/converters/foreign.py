"""A checkpoint file of detectron2's or mmdetection's: what it holds, and how its network takes pixels."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from detkit.models.converters.arrays import read_arrays
from detkit.models.converters.detectron2 import detectron2_preset, from_detectron2
from detkit.models.converters.mmdetection import from_mmdetection, mmdetection_preset
from detkit.models.converters.mmdetection_config import input_in, names_in
from detkit.models.converters.pixels import OF_STYLE, Pixels, Style, pixels_of
from detkit.structures import Categories
from detkit.utils.tensors import check_dense

Library = Literal["detectron2", "mmdetection"]

_STEM = "backbone.conv1.weight"

#: The class layer of each model, and for those with a row of classes for each anchor its box layer.
_LAST_LAYERS = (
    ("roi_heads.box_predictor.cls_score", None),
    ("roi_head.bbox_head.fc_cls", None),
    ("bbox_head.heatmap_head.2", None),
    ("head.cls_score", "head.bbox_pred"),
    ("bbox_head.retina_cls", "bbox_head.retina_reg"),
)


@dataclass(frozen=True)
class Foreign:
    """A state dict of ``library``; ``style``, ``names`` of the classes and ``pixels`` where the file tells them."""

    library: Library
    state: Mapping[str, Tensor]
    style: Style | None
    names: tuple[str, ...] | None
    pixels: Pixels | None = None

    @property
    def preset(self) -> str:
        """The model preset that is built as its network, of the style "pytorch" or "caffe" that it is most often of."""
        return (detectron2_preset if self.library == "detectron2" else mmdetection_preset)(self.state)

    @property
    def num_classes(self) -> int:
        """The classes that it tells apart, without background.

        Raises:
            ValueError: its last layers are missing, or have no rows.
        """
        for scores, boxes in _LAST_LAYERS:
            if f"{scores}.bias" in self.state and boxes is None:
                return self._num_rows(scores) - ("cls" in scores)
            if boxes is not None and {f"{scores}.bias", f"{boxes}.bias"} <= self.state.keys():
                return 4 * self._num_rows(scores) // self._num_rows(boxes)
        raise ValueError("its last layers are missing")

    def _num_rows(self, layer: str) -> int:
        shape = self.state[f"{layer}.bias"].shape
        if not (shape and shape[0]):
            raise ValueError(f"{layer}.bias {tuple(shape)} has no rows")
        return shape[0]

    @property
    def depth(self) -> int:
        """Of its ResNet: 101 where the third stage has so many blocks, else 50, as most are."""
        return 101 if any(re.match(r"^backbone\.(layer3|bottom_up\.res4)\.22\.", key) for key in self.state) else 50

    def pixels_by(self, style: Style) -> Pixels:
        """How its network takes pixels: as the file tells, else as ``style`` has it."""
        return self.pixels or OF_STYLE[style]

    def converted(self, categories: Categories, style: Style) -> tuple[dict[str, Tensor], bool]:
        """The weights under detkit's names for pixels in RGB, and whether the class layers are among them.

        Raises:
            UnfitError: its last layers are missing, or do not fit each other.
        """
        convert = from_detectron2 if self.library == "detectron2" else from_mmdetection
        found, with_classes = convert(self.state, categories, self.names)
        if self.pixels_by(style).is_bgr and _STEM in found and found[_STEM].ndim > 1:  # else it does not fit anyway
            found[_STEM] = found[_STEM].flip(1)
        return found, with_classes


def read_foreign(library: Library, path: Path) -> Foreign:
    """The checkpoint ``path``, of which nothing is run.

    Raises:
        ValueError: there is no such file, or it holds something else; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    content = read_arrays(path) if path.suffix.lower() == ".pkl" else _read_torch(path, library)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    state = _state_in(content, "model" if library == "detectron2" else "state_dict", path)
    meta = meta if isinstance(meta, Mapping) else {}
    try:
        text = str(meta.get("config") or meta.get("cfg") or "")
        style, pixels = _input_of(state) if library == "detectron2" else input_in(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Foreign(library, state, style, names_in(meta), pixels)


def _read_torch(path: Path, library: Library) -> Any:
    key = "model" if library == "detectron2" else "state_dict"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds, what it refuses to make among them
        if not isinstance(error, pickle.UnpicklingError) and not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
        raise ValueError(
            f"{path} holds objects beside tensors, which are not taken from a file, or is damaged: with {library}'s "
            f"own Python save its {key!r} alone, torch.save({{{key!r}: checkpoint[{key!r}]}}, 'new.pth')"
        ) from error


def _state_in(content: Any, key: str, path: Path) -> dict[str, Tensor]:
    state = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise ValueError(f"{path} is not a state dict (name -> tensor), nor has it one under {key!r}")
    state = {str(k).removeprefix("module."): v for k, v in state.items()}
    try:
        check_dense(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return state


def _input_of(state: Mapping[str, Tensor]) -> tuple[Style | None, Pixels | None]:
    """Style and pixels by the mean and deviation that detectron2's older files hold.

    Raises:
        ValueError: they are no three numbers each, or do not tell RGB from BGR.
    """
    names = ("pixel_mean", "pixel_std")
    if not any(name in state for name in names):
        return None, None
    mean, std = (state[name].flatten().tolist() if name in state else None for name in names)
    pixels = pixels_of(mean, std, None, names)
    return pixels.style, pixels
