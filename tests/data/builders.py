"""Tiny data sets for the tests, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def picture(h: int = 48, w: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth colourful image, uint8 (h, w, 3) RGB: JPEG keeps it well."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)


def write_picture(path: Path, h: int = 48, w: int = 64, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(h, w, seed)[..., ::-1])
    return path


def image(i: int, h: int = 48, w: int = 64, **more: Any) -> dict[str, Any]:
    return {"id": i, "file_name": f"{i}.png", "height": h, "width": w, **more}


def annotation(i: int, image_id: int, box: Sequence[Any], category_id: Any = 3, **more: Any) -> dict[str, Any]:
    numbers = [b for b in box if isinstance(b, (int, float))]
    area = numbers[2] * numbers[3] if len(numbers) == 4 else 0
    return {
        "id": i,
        "image_id": image_id,
        "bbox": list(box),
        "category_id": category_id,
        "area": area,
        "iscrowd": 0,
        **more,
    }


def write_coco(
    root: Path,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]] = CATEGORIES,
    pictures: bool = True,
) -> Path:
    """``root``/train.json, and the pictures that it names."""
    root.mkdir(parents=True, exist_ok=True)
    content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    (root / "train.json").write_text(json.dumps(content))
    for record in images if pictures else ():
        write_picture(root / "images" / record["file_name"], record["height"], record["width"], seed=record["id"])
    return root


def coco_set(root: Path, num_images: int = 12) -> Path:
    """A sound data set: images of changing sizes with 0 to 3 boxes, one of them a crowd."""
    rng = np.random.default_rng(5)
    images, annotations = [], []
    for i in range(1, num_images + 1):
        h, w = (40, 56) if i % 3 else (56, 40)
        images.append(image(i, h, w))
        for _ in range(i % 4):
            x, y = rng.uniform(0, 20, 2).round(2)
            box = [x, y, *rng.uniform(4, 18, 2).round(2)]
            crowd = int(len(annotations) % 7 == 3)
            category = (3, 7)[len(annotations) % 2]
            annotations.append(annotation(len(annotations) + 1, i, box, category, iscrowd=crowd))
    return write_coco(root, images, annotations)
