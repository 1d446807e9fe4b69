"""The shapes data set: generated on first use, kept in COCO layout, and from then on read like any other."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from detkit.config import DATASETS
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.coco import CocoDataset
from detkit.data.datasets.coco_keypoints import keypoints
from detkit.data.datasets.scenes import ANY_COLOR, SIZE_RANGE, TIP_NAMES, Vocabulary, draw_scene
from detkit.data.datasets.vocabularies import NAMES, many_classes, new_classes, zipf_chances
from detkit.data.decode import read_image

logger = logging.getLogger(__name__)

#: Part of the parameters' hash: to be raised when the drawing changes, so that no old pictures are taken for new ones.
VERSION = 2

MARKER = "shapes.json"
SPLITS = ("train", "val")
JPEG_QUALITY = 92

#: Px below which a star and a circle are the same few pixels.
MIN_WIDTH = 4.0


@DATASETS
class ShapesDataset(DetectionDataset):
    """Circles, squares, triangles, stars, crosses and rings, from small to large, overlapping, textured and noisy.

    The pictures of both splits are made on first use and depend on the arguments alone. They lie in COCO layout in a
    folder of ``root`` named by the arguments' hash; other arguments make another folder.

    Args:
        root: where the folder is made; relative to the current directory.
        split: which part to read; train and val share no random number.
        num_train: number of training images.
        num_val: number of validation images.
        image_size: longer side of the images in px; the shorter one has between 3/4 of it and all of it.
        max_objects: figures in an image, at most; there is at least one.
        size_range: least and greatest width of a figure, as shares of ``image_size``; small ones are as frequent as
            large ones (log-uniform).
        seed: another one gives other images.
        vocabulary: "figures" are the six classes above, in any colour. "many" are 240, each an outline, a colour and a
            texture; in the training images their frequencies fall by Zipf's law, in the validation images all are as
            frequent, so that the rare ones can be scored.
        zipf: exponent of that law; 0 makes all as frequent.
        num_new: so many of the 240 are new classes, kept apart.
        classes: of the 240 "all", those that are "known", or the "new" ones alone, which are to be added later. The
            files list these and no others, under the same ids.
        landmarks: whether the files tell where the tips of each figure are, right, lower, left and upper; round figures
            have none. The pictures are the same.

    Raises:
        ValueError: an argument is out of range, the folder cannot be written, or it holds something else.
    """

    def __init__(
        self,
        *,
        root: str = "datasets/shapes",
        split: Literal["train", "val"] = "train",
        num_train: int = 300,
        num_val: int = 100,
        image_size: int = 160,
        max_objects: int = 6,
        size_range: tuple[float, float] = SIZE_RANGE,
        seed: int = 0,
        vocabulary: Literal["figures", "many"] = "figures",
        zipf: float = 1.0,
        num_new: int = 0,
        classes: Literal["all", "known", "new"] = "all",
        landmarks: bool = False,
    ) -> None:
        parameters = {
            "num_train": num_train,
            "num_val": num_val,
            "image_size": image_size,
            "max_objects": max_objects,
            "size_range": list(size_range),
            "seed": seed,
        }
        parameters |= _of_many(vocabulary, zipf, num_new, classes) | _of_landmarks(landmarks)
        _check(parameters)
        self.folder = _prepare(Path(root), parameters | {"version": VERSION})
        coco = CocoDataset(root=str(self.folder), annotations=f"{split}.json")
        self.categories, self.truths, self.report = coco.categories, coco.truths, coco.report
        self.coco_file = coco.coco_file

    def read(self, index: int) -> np.ndarray:
        truth = self.truths[index]
        return read_image(truth.file, truth.size)


def _check(parameters: Mapping[str, Any]) -> None:
    least = {"num_train": 1, "num_val": 1, "image_size": 64, "max_objects": 1, "seed": 0}
    for name, value in least.items():
        if parameters[name] < value:
            raise ValueError(f"{name} must be at least {value}, not {parameters[name]}")
    low, high = parameters["size_range"]
    least_share = MIN_WIDTH / parameters["image_size"]
    if not least_share <= low <= high <= 1:
        raise ValueError(
            f"size_range must be two shares of the image's side between {least_share:.3f} ({MIN_WIDTH:g} px) and 1, "
            f"the lesser one first, not {parameters['size_range']}"
        )


def _of_many(vocabulary: str, zipf: float, num_new: int, classes: str) -> dict[str, Any]:
    """What the pictures of many classes depend on beside; nothing for the others, whose folders keep their names."""
    if vocabulary == "figures":
        return {}
    if not 0 <= zipf < math.inf:
        raise ValueError(f"zipf must be a number from 0 on, not {zipf}")
    least = 1 if classes == "new" else 0
    if not least <= num_new < len(NAMES):
        raise ValueError(f"num_new must be from {least} to {len(NAMES) - 1} with classes={classes}, not {num_new}")
    return {"vocabulary": vocabulary, "zipf": zipf, "num_new": num_new, "classes": classes}


def _of_landmarks(landmarks: bool) -> dict[str, Any]:
    """Nothing where there are none: folders keep their names."""
    return {"landmarks": True} if landmarks else {}


def _vocabulary(parameters: Mapping[str, Any], split: str) -> tuple[Vocabulary, np.ndarray]:
    """The classes of a split, and (K,) bool: which of them its file lists."""
    if "vocabulary" not in parameters:
        return ANY_COLOR, np.ones(len(ANY_COLOR.names), bool)
    new = new_classes(parameters["num_new"], parameters["seed"])
    listed = {"all": np.ones(len(NAMES), bool), "known": ~new, "new": new}[parameters["classes"]]
    chances = zipf_chances(parameters["zipf"] if split == "train" else 0.0, parameters["seed"]) * listed
    return many_classes(chances / chances.sum()), listed


def folder_of(arguments: Mapping[str, Any]) -> Path:
    """Where the pictures of a ``ShapesDataset`` of these arguments, as YAML gives them, are or would be made."""
    known = inspect.signature(ShapesDataset).parameters
    values = {name: arguments.get(name, parameter.default) for name, parameter in known.items()}
    values["size_range"] = [float(share) for share in values["size_range"]]
    many = {name: values.pop(name) for name in ("vocabulary", "zipf", "num_new", "classes")}
    landmarks = bool(values.pop("landmarks"))
    parameters = {name: value for name, value in values.items() if name not in ("root", "split")}
    parameters |= _of_many(many["vocabulary"], float(many["zipf"]), many["num_new"], many["classes"])
    return _named(Path(values["root"]), parameters | _of_landmarks(landmarks) | {"version": VERSION})


def _named(root: Path, parameters: Mapping[str, Any]) -> Path:
    text = json.dumps(parameters, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:12]


def _prepare(root: Path, parameters: Mapping[str, Any]) -> Path:
    """The folder with the pictures that ``parameters`` describe, made now if it is not there."""
    folder = _named(root, parameters)
    if not folder.exists():
        try:
            _make(folder, parameters)
        except OSError as error:
            raise ValueError(f"{folder}: the shapes cannot be written: {error.strerror or error}") from error
    marker = folder / MARKER
    if not marker.is_file() or json.loads(marker.read_text()) != parameters:
        raise ValueError(f"{folder}: its {MARKER} is missing or tells of other pictures; delete the folder")
    return folder


def _make(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Write beside ``folder`` and rename: whoever sees the folder sees all of it, and a killed run leaves none."""
    logger.info("making %d + %d images in %s", parameters["num_train"], parameters["num_val"], folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (partial / "images").mkdir()
        for split in SPLITS:
            _write_split(partial, split, parameters)
        (partial / MARKER).write_text(json.dumps(parameters, indent=1) + "\n")
        partial.chmod(0o755)  # mkdtemp makes it private
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise  # another process of this run was faster, and its folder has the same pictures
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_split(folder: Path, split: str, parameters: Mapping[str, Any]) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    # Ids of the two splits do not meet, so that results of one cannot be scored against the other.
    first_id = 1 if split == "train" else parameters["num_train"] + 1
    vocabulary, listed = _vocabulary(parameters, split)
    for i in range(parameters[f"num_{split}"]):
        rng = np.random.default_rng([parameters["seed"], SPLITS.index(split), i])
        sizes = parameters["image_size"], parameters["max_objects"], parameters["size_range"]
        scene = draw_scene(rng, *sizes, vocabulary)
        name = f"{split}_{i:05d}.jpg"
        written, jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert written
        (folder / "images" / name).write_bytes(jpeg.tobytes())
        h, w = scene.image.shape[:2]
        images.append({"id": first_id + i, "file_name": name, "width": w, "height": h})
        for box, label, area, tips in zip(scene.boxes, scene.labels, scene.areas, scene.tips, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": first_id + i,
                    "category_id": int(label) + 1,
                    "bbox": box.tolist(),
                    "area": int(area),
                    "iscrowd": 0,
                }
                | (keypoints(tips) if parameters.get("landmarks") else {})
            )
    names = enumerate(vocabulary.names, start=1)
    named = {"keypoints": list(TIP_NAMES), "skeleton": []} if parameters.get("landmarks") else {}
    categories = [{"id": k, "name": name} | named for k, name in names if listed[k - 1]]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))
