"""``tools/audit.py``: before training, which objects the head's own assigner leaves without anything to learn from.

Of a cascade, which has no head, it tells the objects that no window answers for (:class:`AnsweringDetector`).
No network runs, and no image is read but those that the page shows: the loader of the training plans its batches from
sizes and boxes, and the assigner gets the shapes of the feature maps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from detkit.app.assemble.parts import build_dataset, build_transforms, check_values, without_pretrained_weights
from detkit.app.assemble.schema import AuditSchema
from detkit.app.audit.advice import advise
from detkit.app.audit.found import Advice, Audit, by_size
from detkit.app.audit.page import audit_page
from detkit.app.audit.pictures import albums
from detkit.app.audit.plan import Planner, auxiliary
from detkit.app.audit.shown import Shown
from detkit.app.cli.entry import run_tool
from detkit.app.run.beside import refuse_run
from detkit.app.run.next_command import tell_training
from detkit.config import ConfigError, build, validate
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.table import count_wanted
from detkit.data.loader import EvalLoader, TrainLoader
from detkit.data.transforms import Transform, unplanned
from detkit.models import build_detector
from detkit.structures import Batch, Images
from detkit.utils.files import atomic_write
from detkit.utils.log import set_up_logging
from detkit.utils.progress import track
from detkit.utils.seed import seed_everything

#: Pixels of the padded images that are assigned where nobody says how many: 500 of 800 x 1333, or all of a small set.
#: Assigning takes about 30 ms for each million.
MOST_PIXELS = 500 * 800 * 1333


def main() -> None:
    """The command line."""
    run_tool(run, "audit")


def run(cfg: DictConfig, folder: Path) -> None:
    """Audit ``cfg.data[cfg.split]``; the report goes to ``folder``."""
    validate(cfg, AuditSchema)
    set_up_logging()
    node: Any = OmegaConf.to_container(cfg, resolve=True)
    split = node["split"]
    check_values(node)
    if node["num_pictures"] < 0:
        raise ConfigError(f"num_pictures: must be 0 or more, not {node['num_pictures']}")
    if node["num_images"] is not None and node["num_images"] < 1:
        raise ConfigError(f"num_images: must be 1 or more, or null, not {node['num_images']}")
    if node["data"].get(split) is None:
        raise ConfigError(f"split: the configuration has no data.{split}")
    refuse_run(folder, "hydra.run.dir")
    seed_everything(node["seed"])
    if node["threads"] is not None:
        torch.set_num_threads(node["threads"])
    dataset = build_dataset(node["data"], split)
    if not count_wanted(dataset.truths).any():
        raise ConfigError(f"data.{split}: none of its {len(dataset)} images has an object: nothing can be assigned")
    without_pretrained_weights(node["model"])
    detector = build_detector(node["model"], dataset.categories)
    planner = Planner(detector)
    transforms = build_transforms(node["transform"][split], f"transform.{split}")
    loader = _loader(node, split, dataset, transforms)
    shown = Shown(dataset)
    planned = track(shown.counted(_batches(loader)), _num_batches(node, split, dataset), "planning batches")
    batches, all_sides = first_batches(planned, node["num_images"])
    if all(target.ignore.all() for batch in batches for target in batch.targets):
        looked_at = sum(map(len, batches))
        raise ConfigError(f"num_images: none of the first {looked_at} images shows an object: nothing can be assigned")
    audit = Audit.of(planner, batches, dataset)
    sizes: Any = OmegaConf.to_container(cfg.transform)
    asked_of_beside = auxiliary(detector)
    beside = None if asked_of_beside is None else Audit.of(asked_of_beside, batches, dataset)
    advice = advise(_without_auxiliary(node), sizes, audit, planner, batches, dataset.categories)
    if wrong := planner.asked.misfit(audit.sides, max(max(meta.size) for meta in audit.metas)):
        poor = float(audit.poor.mean())
        advice.insert(0, Advice(f"{wrong[0].upper()}{wrong[1:]}.", "", poor))
    numbers = audit.to_dict(advice) | {"all": by_size(all_sides), "shown": shown.to_dict()}
    if beside is not None:
        numbers["auxiliary"] = beside.to_dict([])
    atomic_write(folder / "audit.json", json.dumps(numbers, indent=1) + "\n")
    source = f"{audit.wording.owner} on data.{split} ({dataset.report.source})"
    pictures = albums(audit, planner, batches, dataset, node["num_pictures"])
    atomic_write(folder / "audit.html", audit_page(audit, advice, source, pictures, beside))
    rich.print(audit.table())
    caveats = _caveats(transforms, audit, len(dataset), all_sides)
    for line in [audit.in_words(), *audit.why_none(), *shown.in_words(), *caveats, *(a.text for a in advice)]:
        rich.get_console().print(Text(line), soft_wrap=True)
    if beside is not None:
        rich.print(beside.table())
        rich.get_console().print(Text(f"model.head.auxiliary: {beside.in_words()}"), soft_wrap=True)
    rich.print("report:", Text(str(folder / "audit.html"), "bold"))
    tell_training(("split", "num_images", "num_pictures"))


def _without_auxiliary(node: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the head alone that is used at test: changes are tried on that one's references."""
    model = dict(node["model"])
    if "auxiliary" in (model.get("head") or {}):
        model["head"] = {**model["head"], "auxiliary": None}
    return {**node, "model": model}


def _loader(
    node: Mapping[str, Any], split: str, dataset: DetectionDataset, transforms: Sequence[Transform]
) -> TrainLoader | EvalLoader:
    runtime: dict[str, Any] = {"dataset": dataset, "transforms": transforms}
    said = node["data"]["loader"][split]
    once: dict[str, Any] = {"num_workers": 0}
    if split == "train":
        runtime["seed"] = node["seed"]
        once |= {name: None for name in ("sampling",) if name in said}  # each image counts once
    return build(said | once, key=f"data.loader.{split}")(**runtime)


def _num_batches(node: Mapping[str, Any], split: str, dataset: DetectionDataset) -> int:
    return -(-len(dataset) // node["data"]["loader"][split]["batch_size"])


def _batches(loader: TrainLoader | EvalLoader) -> Iterator[Batch]:
    """The batches of the first epoch, with their sizes and boxes as in the training.

    Batches that are grouped by their aspect mix the end of an epoch with the next one; each image counts once.
    """
    seen: set[int] = set()
    for batch in loader.lay():
        first = {meta.image_id: i for i, meta in reversed(list(enumerate(batch.images.meta)))}
        rows = sorted(i for image_id, i in first.items() if image_id not in seen)
        seen.update(first)  # "|=" with a view of keys would copy all of them each time
        if rows:
            yield _select(batch, rows)
        if isinstance(loader, TrainLoader) and len(seen) == loader.num_images:
            return  # within some batches after the first epoch, see TrainSampler


def _select(batch: Batch, rows: Sequence[int]) -> Batch:
    metas = tuple(batch.images.meta[i] for i in rows)
    return Batch(Images(batch.images.pixels[: len(rows)], metas), tuple(batch.targets[i] for i in rows))


def first_batches(batches: Iterable[Batch], num_images: int | None) -> tuple[list[Batch], np.ndarray]:
    """Those with the first ``num_images`` images, None for as many as have ``MOST_PIXELS``; and of all objects (N,),
    crowds left out, the root of the area of their box, px of the network input."""
    kept, sides, pixels = [], [np.zeros(0, np.float32)], 0
    left = num_images
    for batch in batches:
        for target in batch.targets:
            w, h = (target.boxes[:, 2:] - target.boxes[:, :2])[~target.ignore].numpy().T
            sides.append(np.sqrt(w * h))
        if left is None:
            if pixels < MOST_PIXELS:
                kept.append(batch)
                pixels += len(batch) * math.prod(batch.images.padded_size)
            continue
        if left >= len(batch):
            kept.append(batch)
        elif left > 0:
            kept.append(_select(batch, range(left)))
        left = max(0, left - len(batch))
    return kept, np.concatenate(sides)


def _caveats(transforms: Sequence[Transform], audit: Audit, num_images: int, all_sides: np.ndarray) -> list[str]:
    """What the figures rest on, where that is not each image and its own pixels."""
    lines = []
    if len(audit.labels) < len(all_sides):
        shares = ", ".join(f"{n / len(all_sides):.1%} {name}" for name, n in by_size(all_sides).items() if n)
        lines += [
            f"Looked at: {audit.num_images} of the {num_images} images, those of the first batches; "
            f"num_images={num_images} takes all of them",
            f"All {len(all_sides)} objects of the epoch by size in the network: {shares}",
        ]
    if names := unplanned(transforms):
        verb = "tells" if len(names) == 1 else "tell"
        lines.append(f"{', '.join(names)} {verb} where objects go only after seeing pixels: run on black images here")
    return lines


if __name__ == "__main__":
    main()
