"""``tools/inspect_model.py``: what each level of a detector sees, what it costs, and which objects it can find."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from rich.text import Text
from torch import Tensor

from detkit.analysis.cost import measure_cost
from detkit.analysis.receptive_field import (
    LevelField,
    effective_fields,
    effective_size,
    receptive_fields,
)
from detkit.app.assemble.init_from import initialize
from detkit.app.assemble.parts import build_dataset, build_transforms, check_values, choose_device
from detkit.app.assemble.schema import InspectModelSchema
from detkit.app.cli.entry import run_tool
from detkit.app.inspect.model_found import Inspection, Level
from detkit.app.inspect.model_report import as_dict, describe, level_table, plot, size_table
from detkit.app.inspect.model_report import cost_table as part_table
from detkit.config import ConfigError, validate
from detkit.config.ranges import check_range
from detkit.config.validate import plain
from detkit.data.at_scale import at_input_scale, input_size
from detkit.data.datasets.base import DetectionDataset
from detkit.data.sample import Sample
from detkit.data.transforms import Transform, apply
from detkit.matching import Anchors, misfit
from detkit.models import Backbone, ComposedDetector, build_detector
from detkit.models.detector import normalize
from detkit.models.layers import one_branch
from detkit.pictures.draw import PNG_METADATA
from detkit.structures import Categories, FeatureSpec, ImageMeta, Images
from detkit.utils.files import atomic_write
from detkit.utils.progress import track
from detkit.utils.seed import seed_everything

#: Sections that only training reads: what they leave open is no mistake here.
_UNREAD = ("optim", "schedule", "trainer", "evaluator", "callbacks")

#: Where there is no data: the commonest image of COCO, padded as the loaders do by default.
_IMAGE_SIZE = (480, 640)
_SIZE_DIVISOR = 32


def main() -> None:
    """The command line."""
    run_tool(run, "inspect_model")


def run(cfg: DictConfig, folder: Path) -> Inspection:
    """Check ``cfg``, inspect its detector, show the tables, and write ``model.json``, ``.txt`` and the picture."""
    node = checked(cfg)
    if node["threads"] is not None:
        torch.set_num_threads(node["threads"])
    found = inspect(node)
    folder.mkdir(parents=True, exist_ok=True)
    text = describe(found)
    atomic_write(folder / "config.yaml", OmegaConf.to_yaml(cfg))
    atomic_write(folder / "model.json", json.dumps(as_dict(found), indent=1) + "\n")
    atomic_write(folder / "model.txt", text + "\n")
    atomic_write(folder / "receptive_field.png", lambda path: plot(found).savefig(path, metadata=PNG_METADATA))
    rich.print(part_table(found), level_table(found))
    if found.sides is not None:
        rich.print(size_table(found))
    rich.get_console().print(Text(text), soft_wrap=True)
    rich.print("report and picture:", Text(str(folder), "bold"))
    return found


def checked(cfg: DictConfig) -> dict[str, Any]:
    """``cfg`` as plain values, without the data section where ``data=null`` left only what an experiment says of it.

    Raises:
        ConfigError: a mistake in what is read here, or a key that nobody knows.
    """
    given = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(given, DictConfig)
    if "data" in given and not {"train", "val"} & set(given.data or {}):
        del given["data"]
    try:
        node = plain(given)
    except ConfigError as error:
        hint = "; data=null inspects the model without data" if "data.root" in str(error) else ""
        raise ConfigError(f"{error}{hint}") from None
    try:
        validate(node, InspectModelSchema)
    except ConfigError as error:
        if errors := [e for e in error.errors if not (e.split(".")[0] in _UNREAD and ": needs a value" in e)]:
            raise ConfigError(errors) from None
    check_values(node)
    check_range("num_inputs", node["num_inputs"], 0)
    check_range("classes", node["classes"], 1)
    if node["input_size"] is not None and min(node["input_size"]) < 1:
        raise ConfigError(f"input_size: must be [height, width] in px, not {node['input_size']}")
    return node


def inspect(node: Mapping[str, Any]) -> Inspection:
    """Build the detector that ``node`` describes and look at it.

    Raises:
        ConfigError: it is not composed of backbone, neck and head, or the data set lacks the split.
    """
    seed_everything(node["seed"])
    device = choose_device(node["device"])
    data = node.get("data")
    if "_target_" in node["model"]:
        raise ConfigError(f"model: {node['model']['_target_']} has no backbone, neck and head to look at")
    if data is not None and data.get(node["split"]) is None:
        raise ConfigError(f"split: the configuration has no data.{node['split']}")
    dataset = None if data is None else build_dataset(data, node["split"])
    names = [f"class {i}" for i in range(node["classes"])]
    categories = Categories(tuple(names), tuple(range(len(names)))) if dataset is None else dataset.categories
    detector = build_detector(node["model"], categories)
    assert isinstance(detector, ComposedDetector)
    if node["init_from"] is not None:
        initialize(detector, node["init_from"], categories, node["model"])
    detector.to(device).eval()
    transforms = build_transforms(node["transform"]["val"], "transform.val")
    scale = None if dataset is None else at_input_scale(dataset, transforms)
    size = _image_size(node, transforms, None if scale is None else scale.image_sizes)
    padded = _padded(size, {} if data is None else data["loader"]["val"])
    sides = None if scale is None else np.sqrt((scale.boxes[:, 2:] - scale.boxes[:, :2]).prod(axis=1))
    levels, inputs, notes = _look(detector, padded, dataset, transforms, node["num_inputs"], node["seed"])
    for grid in _anchor_grids(detector.head):
        if wrong := misfit(grid, np.zeros(0) if sides is None else sides, max(padded)):
            notes.append(wrong)
    costs, uncounted = measure_cost(detector, _blank(size, padded, device))
    if uncounted:
        notes.append(f"not in the FLOPs: {', '.join(uncounted)}")
    return Inspection(padded, levels, costs, sides, inputs, tuple(notes))


def _image_size(
    node: Mapping[str, Any], transforms: Sequence[Transform], image_sizes: np.ndarray | None
) -> tuple[int, int]:
    """(h, w) of the network input before padding."""
    if node["input_size"] is not None:
        return node["input_size"][0], node["input_size"][1]
    if image_sizes is None or not len(image_sizes):
        return input_size(_IMAGE_SIZE, transforms)[0]
    counts = Counter((int(h), int(w)) for h, w in image_sizes)
    return max(counts, key=lambda size: (counts[size], size))


def _padded(size: tuple[int, int], loader: Mapping[str, Any]) -> tuple[int, int]:
    divisor = loader.get("size_divisor", _SIZE_DIVISOR)
    h, w = (-(-side // divisor) * divisor for side in size)
    return (max(h, w), max(h, w)) if loader.get("square", False) else (h, w)


def _look(
    detector: ComposedDetector,
    size: tuple[int, int],
    dataset: DetectionDataset | None,
    transforms: Sequence[Transform],
    num_inputs: int,
    seed: int,
) -> tuple[tuple[Level, ...], str, list[str]]:
    """The levels; which inputs their effective fields come from; and notes."""
    device = next(detector.parameters()).device

    num_branches = detector.backbone.num_branches
    backbones = [detector.backbone] if num_branches == 1 else _each_branch(detector.backbone)

    def network(pixels: Tensor) -> Sequence[Tensor]:
        return [level for backbone in backbones for level in detector.neck(pixels, backbone)]

    channels, strides = detector.neck.out_spec
    spec = FeatureSpec(channels * num_branches, strides * num_branches)
    fields, notes = receptive_fields(network, torch.zeros(1, 3, *size, device=device))
    for i, (field, stride) in enumerate(zip(fields, spec.strides, strict=True)):
        if field.stride is not None and not np.allclose(field.stride, stride, rtol=1e-3):
            found = " x ".join(f"{s:g}" for s in field.stride)
            notes.append(f"level {i}: the neck says stride {stride:g}, but its operations make {found}")
    window = _window(size, fields, spec.strides)
    seen, gradients, inputs = fields, [None] * len(fields), "none"
    if num_inputs:
        pictures = _pictures(detector, dataset, transforms, num_inputs, window, seed)
        pictures = track(pictures, num_inputs, "effective fields")
        gradients = effective_fields(network, pictures)
        seen = receptive_fields(network, torch.zeros(1, 3, *window, device=device))[0] if window != size else fields
        what = "images of noise" if dataset is None else "images of the data set"
        num = num_inputs if dataset is None else min(num_inputs, len(dataset))
        inputs = f"{num} {what}, {window[0]} x {window[1]} px"
    anchors = _anchor_sides(detector.head, len(fields) // num_branches) * num_branches
    levels = [
        Level(stride, field, at, grad, None if grad is None else effective_size(grad), sides)
        for stride, field, at, grad, sides in zip(spec.strides, fields, seen, gradients, anchors, strict=True)
    ]
    return tuple(levels), inputs, notes


def _each_branch(backbone: Backbone) -> list[torch.nn.Module]:
    """A backbone for each branch: run together they would show one field, the union of all."""
    return [one_branch(backbone, i) for i in range(backbone.num_branches)]


def _window(size: tuple[int, int], fields: Sequence[LevelField], strides: Sequence[float]) -> tuple[int, int]:
    """The part of an input of ``size`` that is enough for every level's middle cell: its field, or all of the image."""
    if any(field.size is None or field.whole_image for field in fields):
        return size
    step = int(np.ceil(max(strides)))
    wanted = [max(field.size[axis] for field in fields if field.size is not None) for axis in (0, 1)]
    enough = [-(-(side + step) // step) * step for side in wanted]  # its middle cell is not exactly in the middle
    return min(size[0], enough[0]), min(size[1], enough[1])


def _pictures(
    detector: ComposedDetector,
    dataset: DetectionDataset | None,
    transforms: Sequence[Transform],
    num: int,
    window: tuple[int, int],
    seed: int,
) -> Iterator[Tensor]:
    """Normalised pixels (1, 3, *window): the middle of images from all over the data set, or noise."""
    device = next(detector.parameters()).device
    if dataset is None:
        random = torch.Generator().manual_seed(seed)
        yield from (torch.randn(1, 3, *window, generator=random).to(device) for _ in range(num))
        return
    for i in np.unique(np.linspace(0, len(dataset) - 1, num).round().astype(int)).tolist():
        sample = apply(transforms, Sample.from_truth(dataset.read(i), dataset.truths[i]), key=0)
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))[None].to(device)
        h, w = sample.size
        images = Images(pixels, (ImageMeta(0, dataset.truths[i].file, (h, w), (h, w)),))
        top, left = max(0, (h - window[0]) // 2), max(0, (w - window[1]) // 2)
        whole = normalize(images, detector.pixel_mean, detector.pixel_std)
        middle = whole[:, :, top : top + window[0], left : left + window[1]]
        yield F.pad(middle, (0, window[1] - middle.shape[3], 0, window[0] - middle.shape[2]))


def _blank(size: tuple[int, int], padded: tuple[int, int], device: torch.device) -> Images:
    """One image of noise."""
    pixels = torch.zeros(1, 3, *padded, dtype=torch.uint8)
    random = torch.Generator().manual_seed(0)
    pixels[:, :, : size[0], : size[1]] = torch.randint(0, 256, (1, 3, *size), generator=random, dtype=torch.uint8)
    return Images(pixels.to(device), (ImageMeta(0, "noise", size, size),))


def _anchor_sides(head: torch.nn.Module, num_levels: int) -> list[tuple[float, ...]]:
    """The different sides (root of the area, px) of the anchors of each level; none where the head has no anchors."""
    for grid in _anchor_grids(head):
        if len(grid.strides) == num_levels:
            grids = grid([(1, 1)] * num_levels, torch.device("cpu"))
            areas = [(a[:, 2:] - a[:, :2]).prod(1).sqrt() for a in grids]
            return [tuple(sorted({round(side, 1) for side in level.tolist()})) for level in areas]
    return [()] * num_levels


def _anchor_grids(head: torch.nn.Module) -> list[Anchors]:
    return [part for module in head.modules() for part in vars(module).values() if isinstance(part, Anchors)]


if __name__ == "__main__":
    main()
