"""Fetch Pascal VOC: 2007 (trainval and test) and 2012 (trainval), 20 classes (http://host.robots.ox.ac.uk/pascal/VOC).

Leaves VOCdevkit/ under --root as it is published, which detkit reads; --to-coco writes COCO JSON files beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from archives import Archive, Options, fetch_archives, make_parser, read_options, run
from disk import FetchError, write_json
from progress import say
from voc_xml import Picture, read_list, to_coco

#: The second sends to the first.
HOMES = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")

#: Sizes and SHA-256 as in tensorflow/datasets, tensorflow_datasets/url_checksums/voc.txt (Apache-2.0), commit
#: 333639b37af6; pytorch/vision, torchvision/prototype/datasets/_builtin/voc.py, has the same SHA-256 for these homes.
ARCHIVES = {
    "2007-trainval": Archive(
        "voc2007/VOCtrainval_06-Nov-2007.tar",
        460_032_000,
        "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
    ),
    "2007-test": Archive(
        "voc2007/VOCtest_06-Nov-2007.tar",
        451_020_800,
        "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
    ),
    "2012-trainval": Archive(
        "voc2012/VOCtrainval_11-May-2012.tar",
        1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
}

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

#: What the papers call 07+12: both trainval sets to train on, against the test set of 2007.
UNION = ("2007-trainval", "2012-trainval")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__ or "", "voc")
    parser.add_argument("--split", nargs="+", choices=tuple(ARCHIVES), default=tuple(ARCHIVES), help="default: all")
    parser.add_argument(
        "--to-coco",
        action="store_true",
        help="also write annotations/voc<year>_<split>.json, and voc0712_trainval.json when both years are there; "
        "their images are relative to VOCdevkit",
    )
    args = parser.parse_args(arguments)
    return run(lambda: fetch_voc(read_options(args, HOMES), tuple(dict.fromkeys(args.split)), args.to_coco))


def fetch_voc(options: Options, splits: Sequence[str], convert: bool) -> None:
    fetch_archives([ARCHIVES[split] for split in splits], options, options.root)
    devkit = options.root / "VOCdevkit"
    for split in splits:
        pictures = find_pictures(devkit, split)
        say(options.console, f"{split}: {len(pictures)} pictures in {devkit / _year_folder(split)}")
    if convert:
        sets = {f"voc{split.replace('-', '_')}": [split] for split in splits}
        if set(UNION) <= set(splits):
            sets["voc0712_trainval"] = list(UNION)
        for name, members in sets.items():
            write_coco(options, name, members)
        say(options.console, f"Ready: data=coco data.root={options.root}, with what datasets/README.md says of VOC")
    else:
        say(options.console, f"Ready: data=voc data.root={devkit / _year_folder(splits[0])}")


def find_pictures(devkit: Path, split: str) -> list[Picture]:
    """The pictures of a split, after making sure that each is there. Their ids are the digits of their names."""
    folder = _year_folder(split)
    pictures = []
    for name in read_list(devkit / folder / "ImageSets" / "Main" / f"{split.partition('-')[2]}.txt"):
        file_name = f"{folder}/JPEGImages/{name}.jpg"
        if not (devkit / file_name).is_file():
            raise FetchError(f"{devkit / file_name}: missing, though {split} names it")
        # "000005" of 2007 gives 5, "2008_000002" of 2012 gives 2008000002: unique over both.
        pictures.append(Picture(int(name.replace("_", "")), file_name, devkit / folder / "Annotations" / f"{name}.xml"))
    return pictures


def write_coco(options: Options, name: str, splits: Sequence[str]) -> None:
    pictures = [picture for split in splits for picture in find_pictures(options.root / "VOCdevkit", split)]
    content, counts = to_coco(pictures, CLASSES, inclusive=True, description=f"Pascal VOC {' + '.join(splits)}")
    path = options.root / "annotations" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, content)
    say(options.console, f"{path}: {counts.describe()}")


def _year_folder(split: str) -> str:
    return f"VOC{split.partition('-')[0]}"


if __name__ == "__main__":
    sys.exit(main())
