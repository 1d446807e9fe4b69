"""A COCO-sized data set, made up: what train2017 asks of time and memory, without its pictures.

    python -m tests.data.coco_sized /tmp/big             images and train.json, 118 287 empty pictures
    python -m tests.data.coco_sized /tmp/big --time      opens it: seconds, and the most memory that the process had

The numbers are those of ``instances_train2017.json``: images, boxes, classes, the share of crowds, about 27 corners in a
polygon, 450 MB. Boxes and sizes are drawn from a seed, so that the file is the same everywhere.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

NUM_IMAGES = 118_287
NUM_BOXES = 860_001
NUM_CLASSES = 80

#: Sizes (h, w) px and how frequent each is, roughly as in train2017.
SIZES = ((480, 640), (427, 640), (640, 480), (640, 427), (426, 640), (500, 375), (375, 500), (333, 500), (612, 612))
SHARES = (0.30, 0.24, 0.11, 0.08, 0.08, 0.04, 0.06, 0.04, 0.05)

#: Annotations are formatted in blocks of so many, which bounds the memory.
BLOCK = 20_000


def write(root: Path, num_images: int = NUM_IMAGES, num_boxes: int = NUM_BOXES, pictures: bool = True) -> Path:
    """Write ``root``/train.json, and empty files for its pictures; returns the path of the JSON.

    Boxes x y w h lie inside their image; some images have none; each polygon follows an ellipse inside its box.
    """
    (root / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    ids = rng.permutation(581_929)[:num_images] + 1  # with gaps and in no order, as COCO's
    sizes = np.array(SIZES)[rng.choice(len(SIZES), num_images, p=SHARES)]
    path = root / "train.json"
    with open(path, "w", encoding="ascii") as stream:
        stream.write('{"info": {"description": "made up", "year": 2017}, "licenses": [{"id": 1, "name": "none"}], ')
        stream.write('"images": [')
        stream.writelines(_images(ids, sizes))
        stream.write('], "annotations": [')
        for start in range(0, num_boxes, BLOCK):
            stream.writelines(_annotations(rng, ids, sizes, start, min(BLOCK, num_boxes - start)))
        names = ", ".join(f'{{"supercategory": "thing", "id": {k}, "name": "class {k}"}}' for k in range(1, 81))
        stream.write(f'], "categories": [{names}]}}')
    for i in ids if pictures else ():
        (root / "images" / _file_name(i)).touch()
    return path


def _file_name(image_id: int) -> str:
    return f"{image_id:012d}.jpg"


def _images(ids: np.ndarray, sizes: np.ndarray) -> Iterator[str]:
    for i, (image_id, (h, w)) in enumerate(zip(ids.tolist(), sizes.tolist(), strict=True)):
        name = _file_name(image_id)
        yield (
            f'{", " * (i > 0)}{{"license": 1, "file_name": "{name}", "coco_url": "http://example.org/train/{name}", '
            f'"height": {h}, "width": {w}, "date_captured": "2013-11-14 11:18:45", '
            f'"flickr_url": "http://example.org/static/{image_id}_z.jpg", "id": {image_id}}}'
        )


def _annotations(rng: np.random.Generator, ids: np.ndarray, sizes: np.ndarray, start: int, count: int) -> Iterator[str]:
    owners = (rng.beta(0.9, 1.1, count) * len(ids)).astype(int)
    h, w = sizes[owners].T
    sides = np.exp(rng.normal(np.log(0.16), 0.9, (count, 2))).clip(0.01, 0.98) * np.stack([w, h], axis=1)
    starts = rng.uniform(0, 1, (count, 2)) * (np.stack([w, h], axis=1) - sides)
    boxes = np.concatenate([starts, sides], axis=1).round(2)
    crowd = rng.uniform(size=count) < 0.012
    labels = rng.integers(1, NUM_CLASSES + 1, count)
    corners = rng.poisson(19, count) + 5
    for i in range(count):
        x, y, box_w, box_h = boxes[i].tolist()
        if crowd[i]:
            runs = rng.integers(1, 900, 60).tolist()
            shape = f'{{"counts": {runs}, "size": [{h[i]}, {w[i]}]}}'
        else:
            angles = np.linspace(0, 2 * np.pi, corners[i], endpoint=False)
            ring = np.stack([x + box_w * (0.5 + 0.5 * np.cos(angles)), y + box_h * (0.5 + 0.5 * np.sin(angles))], 1)
            shape = f"[{ring.round(2).ravel().tolist()}]"
        yield (
            f'{", " * (start + i > 0)}{{"segmentation": {shape}, "area": {box_w * box_h * 0.78:.4f}, '
            f'"iscrowd": {int(crowd[i])}, "image_id": {ids[owners[i]]}, "bbox": [{x}, {y}, {box_w}, {box_h}], '
            f'"category_id": {labels[i]}, "id": {start + i + 1}}}'
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--time", action="store_true", help="open the set that is there")
    args = parser.parse_args()
    start = time.perf_counter()
    if not args.time:
        path = write(args.root)
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB in {time.perf_counter() - start:.0f} s")
        return
    from detkit.data import CocoDataset

    print(f"before: {_most_memory():.0f} MB")
    start = time.perf_counter()
    data = CocoDataset(root=str(args.root))
    print(f"{len(data)} images, {data.report.num_boxes} boxes: {time.perf_counter() - start:.2f} s")
    print(f"most memory: {_most_memory():.0f} MB")


def _most_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
