"""The presets of data and transforms: each composes, is valid, and builds into something that gives batches."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import detkit.data  # noqa: F401  registers the components
from detkit.config import ConfigError, build, validate
from detkit.data import (
    CocoDataset,
    EvalLoader,
    HorizontalFlip,
    Mosaic,
    RandomTile,
    RandomWindow,
    Resize,
    ResizeFit,
    ResizeShortestEdge,
    TrainLoader,
)
from tests.data.builders import coco_set
from tests.data.test_voc import thing, write_voc
from tests.data.test_yolo import write_yolo

CONFIGS = Path(__file__).parents[2] / "configs"
TRANSFORMS = sorted(path.stem for path in (CONFIGS / "transform").glob("*.yaml"))


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(config_name=None, overrides=[f"+{o}" if not o.startswith("+") else o for o in overrides])
    return OmegaConf.to_container(cfg, resolve=True)


def write(kind: str, root: Path) -> None:
    if kind in ("coco", "bccd"):
        coco_set(root)
        (root / "val.json").write_bytes((root / "train.json").read_bytes())
    elif kind == "coco2017":
        coco_set(root)
        (root / "annotations").mkdir()
        for split in ("train", "val"):
            (root / "annotations" / f"instances_{split}2017.json").write_bytes((root / "train.json").read_bytes())
            (root / f"{split}2017").symlink_to(root / "images")
    elif kind == "voc0712":
        coco_set(root)
        (root / "annotations").mkdir()
        for name in ("voc0712_trainval", "voc2007_test"):
            (root / "annotations" / f"{name}.json").write_bytes((root / "train.json").read_bytes())
        (root / "VOCdevkit").symlink_to(root / "images")
    elif kind == "voc":
        write_voc(root, {"a": thing("cat", 2, 2, 9, 9), "b": thing("dog", 5, 5, 50, 40)}, "train")
        write_voc(root, {"c": thing("cat", 2, 2, 9, 9)}, "val")
    elif kind == "yolo":
        write_yolo(root, {"a": "0 0.5 0.5 0.5 0.5", "b": ""}, part="train")
        write_yolo(root, {"c": "1 0.5 0.5 0.5 0.5"}, part="val")


@pytest.mark.parametrize("kind", sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml")))
def test_every_data_preset_gives_batches(tmp_path, kind):
    write(kind, tmp_path)
    few = ["++data.train.num_train=5", "++data.train.num_val=3"] if kind.startswith("shapes") else []
    data = composed(f"data={kind}", f"++data.root={tmp_path}", "++data.loader.train.num_workers=0", *few)["data"]
    assert set(data) == {"root", "train", "val", "loader"}
    for part in (data["train"], data["val"], data["loader"]["train"], data["loader"]["val"]):
        validate(part)
    train, val = build(data["train"]), build(data["val"])
    assert train.categories == val.categories
    loader = build(data["loader"]["train"])(dataset=train, transforms=[HorizontalFlip()], seed=1, rank=0, world_size=1)
    (batch,) = itertools.islice(loader.iterate(), 1)
    assert len(batch) == loader.batch_size == 16
    batches = build(data["loader"]["val"] | {"num_workers": 0})(dataset=val, transforms=[], rank=0, world_size=1)
    assert sum(len(b) for b in batches) == len(val)


def test_one_key_of_the_shapes_holds_for_both_splits():
    data = composed("data=shapes", "++data.train.image_size=192", "++data.train.seed=4")["data"]
    assert data["val"] == data["train"] | {"split": "val"}
    assert (data["val"]["image_size"], data["val"]["seed"], data["root"]) == (192, 4, "datasets/shapes")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_preset_builds(name):
    transform = composed(f"transform={name}")["transform"]
    assert {"train", "val"} <= set(transform) <= {"train", "val", "size"}
    transform.pop("size", None)
    for part, nodes in transform.items():
        steps = [node for node in nodes.values() if node is not None]
        for step in steps:
            validate(step)
        built = [build(step) for step in steps]
        kinds = [
            isinstance(t, ResizeShortestEdge | ResizeFit | Resize | Mosaic | RandomWindow | RandomTile) for t in built
        ]
        assert kinds == sorted(kinds, reverse=True)  # resizing comes first: flipping and colors then cost less
        assert part == "train" or not any(t.training_only for t in built)


def test_training_sizes_hold_for_validation():
    fit = composed("transform=fit", "++transform.train.resize.size=416")["transform"]
    assert fit["val"]["resize"]["size"] == 416
    edge = composed(
        "transform=shortest_edge", "++transform.train.resize.short=[320]", "++transform.train.resize.long=427"
    )
    resize = edge["transform"]["val"]["resize"]
    assert (resize["short"], resize["long"]) == ([320], 427)
    assert composed("transform=multiscale")["transform"]["val"]["resize"]["short"] == [800]
    assert composed("transform=fit_320")["transform"]["val"]["resize"]["size"] == 320


@pytest.mark.parametrize(
    "name", [name for name in TRANSFORMS if name.startswith(("mosaic", "centernet", "yolov1", "square"))]
)
def test_one_size_holds_for_training_and_validation(name, tmp_path):
    """Of both the batches come out in it, whatever the images were."""
    transform = composed(f"transform={name}", "++transform.size=96")["transform"]
    train, val = ([build(s) for s in transform[part].values() if s is not None] for part in ("train", "val"))
    data = CocoDataset(root=str(coco_set(tmp_path)))
    loader = TrainLoader(dataset=data, transforms=train, batch_size=12, num_workers=0)
    (batch,) = itertools.islice(loader.iterate(), 1)
    assert set(batch.images.sizes) == {(96, 96)}
    (batch,) = EvalLoader(dataset=data, transforms=val, batch_size=12, num_workers=0)
    if name.startswith(("yolov1", "square")):
        assert set(batch.images.sizes) == {(96, 96)}
    else:
        assert set(batch.images.sizes) == {(69, 96), (96, 69)}


def test_mistakes_are_told_by_key():
    data = composed("data=coco", "++data.root=/nowhere", "++data.train.annotation=x", "++data.val.on_missing=no")[
        "data"
    ]
    with pytest.raises(ConfigError) as caught:
        validate(data["train"])
    assert str(caught.value) == "annotation: no argument 'annotation'; did you mean 'annotations'?"
    with pytest.raises(ConfigError) as caught:
        validate(data["val"])
    assert str(caught.value) == "on_missing: must be one of 'error', 'skip', not 'no'"
    loader = composed("data=coco", "++data.loader.train.batchsize=3", "++data.loader.train.dataset=3", "++data.root=x")
    with pytest.raises(ConfigError) as caught:
        validate(loader["data"]["loader"]["train"])
    first, second = caught.value.errors
    assert first == "batchsize: no argument 'batchsize'; did you mean 'batch_size'?"
    assert second.startswith("dataset: arrives at run time")
