"""Fetch COCO 2017: 118 287 pictures to train on, 5 000 to validate, 80 classes (https://cocodataset.org).

Leaves, under --root, train2017/, val2017/ and annotations/ as COCO names them; detkit reads them as they are.
"""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from archives import Archive, Options, fetch_archives, make_parser, read_options, run
from disk import FetchError
from progress import say

#: Not https for the first: it shows Amazon's certificate, which is not for that name. The checksums stand in for it.
HOMES = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")

#: Sizes and SHA-256 as TensorFlow Datasets publishes them: tensorflow/datasets,
#: tensorflow_datasets/url_checksums/coco2017.txt (Apache-2.0), commit 2282548bab48.
ANNOTATIONS = Archive(
    "annotations/annotations_trainval2017.zip",
    252_907_541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)
IMAGES = {
    "train": Archive(
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    "val": Archive(
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
}

#: In the instances files a name stands nowhere but in the list of images.
FILE_NAME = re.compile(rb'"file_name":\s*"([^"\\]+)"')


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__ or "", "coco")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=tuple(IMAGES),
        default=tuple(IMAGES),
        help="splits whose pictures to fetch (default: both; the annotations of both come in one archive)",
    )
    args = parser.parse_args(arguments)
    return run(lambda: fetch_coco(read_options(args, HOMES), tuple(dict.fromkeys(args.split))))


def fetch_coco(options: Options, splits: Sequence[str]) -> None:
    # The annotations first: they are small, and tell early that a mirror has something else.
    fetch_archives([ANNOTATIONS, *(IMAGES[split] for split in splits)], options, options.root)
    for split in splits:
        annotations, images = f"annotations/instances_{split}2017.json", f"{split}2017"
        count = check_images(options.root / annotations, options.root / images)
        say(options.console, f"{split}: {count} pictures in {options.root / images}, {options.root / annotations}")
    say(options.console, f"Ready: data=coco2017 data.root={options.root}")


def check_images(annotations: Path, images: Path) -> int:
    """The number of pictures that ``annotations`` names, after finding each of them in ``images``.

    The JSON is searched, not parsed: train's needs gigabytes of memory as Python objects.
    """
    if not annotations.is_file() or not annotations.stat().st_size:
        raise FetchError(f"{annotations}: missing or empty: the archive {ANNOTATIONS.path} is not COCO's")
    with open(annotations, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        names = {found[1].decode() for found in FILE_NAME.finditer(text)}
    there = {path.name for path in images.iterdir()} if images.is_dir() else set()
    if missing := sorted(names - there):
        raise FetchError(f"{images}: {len(missing)} of {len(names)} pictures are missing, first {missing[0]}")
    if not names:
        raise FetchError(f"{annotations}: names no pictures: not one of COCO's instances files")
    return len(names)


if __name__ == "__main__":
    sys.exit(main())
