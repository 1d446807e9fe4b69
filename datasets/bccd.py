"""Fetch BCCD: 364 microscope pictures of blood, 3 classes (https://github.com/Shenggan/BCCD_Dataset).

Leaves images/, train.json, val.json and test.json under --root: COCO layout, with the repository's own split.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from archives import Archive, Options, fetch_archives, make_parser, read_options, run
from disk import FetchError, write_json
from progress import say
from voc_xml import Picture, read_list, to_coco

HOMES = ("https://github.com/Shenggan/BCCD_Dataset/archive",)

#: The tag v1.0. Size and SHA-256 as TensorFlow Datasets publishes them: tensorflow/datasets,
#: tensorflow_datasets/datasets/bccd/checksums.tsv (Apache-2.0), commit 90b66237ad09. GitHub makes the archive on demand
#: and no longer promises its bytes, only its files (github.blog, 2023-02-21); if they ever change, --no-checksum helps.
ARCHIVE = Archive(
    "v1.0.zip",
    7_875_205,
    "97af5cc16d14d293fcb3c82a8f66e49b0339a8d0abd8e9508e0feeb4911caa1f",
    name="BCCD_Dataset-1.0.zip",
)

#: Where the data lies in the archive: GitHub names the folder by repository and tag.
FOLDER = "BCCD_Dataset-1.0/BCCD"

#: Images of each list in v1.0, as https://www.tensorflow.org/datasets/catalog/bccd has them.
NUM_IMAGES = {"train": 205, "val": 87, "test": 72}

CLASSES = ("RBC", "WBC", "Platelets")


def main(arguments: Sequence[str] | None = None) -> int:
    args = make_parser(__doc__ or "", "bccd").parse_args(arguments)
    return run(lambda: fetch_bccd(read_options(args, HOMES)))


def fetch_bccd(options: Options) -> None:
    source = options.root / "source"
    fetch_archives([ARCHIVE], options, source)
    num_images = num_boxes = 0
    for split, expected in NUM_IMAGES.items():
        names = read_list(source / FOLDER / "ImageSets" / "Main" / f"{split}.txt")
        copy_pictures(source / FOLDER / "JPEGImages", options.root / "images", names)
        annotations = source / FOLDER / "Annotations"
        pictures = [Picture(num_images + i, f"{n}.jpg", annotations / f"{n}.xml") for i, n in enumerate(names, start=1)]
        # The boxes were drawn with labelImg, whose corners are places on the picture and not pixels inside the box.
        content, counts = to_coco(
            pictures, CLASSES, inclusive=False, description=f"BCCD v1.0 {split}", first_id=num_boxes + 1
        )
        num_images, num_boxes = num_images + counts.num_images, num_boxes + counts.num_boxes
        write_json(options.root / f"{split}.json", content)
        say(options.console, f"{options.root / split}.json: {counts.describe()}")
        if counts.num_images != expected:
            say(options.console, f"note: v1.0 has {expected} images in {split}; this is another version of BCCD")
    say(options.console, f"Ready: data=bccd data.root={options.root}")


def copy_pictures(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy NAME.jpg for all ``names``; those that are there with the same size stay."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        old, new = source / f"{name}.jpg", target / f"{name}.jpg"
        if not old.is_file():
            raise FetchError(f"{old}: missing, though ImageSets names it")
        if not new.exists() or new.stat().st_size != old.stat().st_size:
            half = target / f".{name}.new"
            shutil.copyfile(old, half)
            os.replace(half, new)


if __name__ == "__main__":
    sys.exit(main())
