"""What a few examples say of new classes, and the checkpoint that knows them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from detkit.app.assemble.init_from import class_layers
from detkit.engine.evaluation import to_device
from detkit.engine.state.checkpoint import Checkpoint, load_weights
from detkit.losses.cosine_layers import cosines
from detkit.models import build_detector
from detkit.models.cosine_regions import CosineRegions, prototype
from detkit.structures import Batch, Categories


@dataclass(frozen=True, slots=True)
class Examples:
    """``features`` (E_k, C) of the examples of each class, and ``common`` (C,), the mean direction of all regions."""

    features: tuple[Tensor, ...]
    common: Tensor


@dataclass(frozen=True, slots=True)
class Added:
    """A new class: ``least_cosine`` of its examples with its weight, and the known class whose weight is nearest."""

    name: str
    category_id: int
    num_examples: int
    least_cosine: float
    nearest: str
    nearest_cosine: float


def new_categories(known: Categories, data: Categories, wanted: Sequence[str] | None, key: str) -> Categories:
    """The classes of ``data`` that are to be added: those that ``wanted`` names, all without.

    Raises:
        ValueError: none is named, or one that is not there, is known already, or whose id is another's.
    """
    if wanted is not None and not wanted:
        raise ValueError(f"classes: is empty; {key} has {', '.join(data.names)}")
    if unknown := [name for name in wanted or () if name not in data.names]:
        raise ValueError(f"classes: {key} has no {', '.join(unknown)}; it has {', '.join(data.names)}")
    pairs = [(n, i) for n, i in zip(data.names, data.ids, strict=True) if wanted is None or n in wanted]
    if there := [name for name, _ in pairs if name in known.names]:
        raise ValueError(
            f"{key}: the detector knows {', '.join(there)} already; classes=[...] names those of the data to add"
        )
    name_of = dict(zip(known.ids, known.names, strict=True))
    if taken := [f"{name} has the id {i}, which is {name_of[i]}'s" for name, i in pairs if i in name_of]:
        raise ValueError(f"{key}: {'; '.join(taken)} in the detector: give new classes ids that are free")
    return Categories(tuple(name for name, _ in pairs), tuple(i for _, i in pairs))


def look_at(
    regions: CosineRegions, batches: Iterable[Batch], labels: Sequence[int], most: int | None, device: torch.device
) -> Examples:
    """The features of the objects of ``labels`` in ``batches``, at most ``most`` of each, label by label."""
    found: list[list[Tensor]] = [[] for _ in labels]
    total, count = torch.zeros(()), 0
    for batch in batches:
        batch = to_device(batch, device, channels_last=False)
        wanted = [target.wanted for target in batch.targets]
        own, beside = regions.features_beside(batch.images, [target.boxes for target in wanted])
        for x, target in zip(own, wanted, strict=True):
            for k, label in enumerate(labels):
                found[k] += x[target.labels == label].cpu()
        others = torch.cat([*own, *beside]).cpu()
        total, count = total + torch.nn.functional.normalize(others, dim=1).sum(0), count + len(others)
    features = tuple(torch.stack(of_class[:most]) if of_class else torch.zeros(0) for of_class in found)
    return Examples(features, total / max(count, 1))


def check_examples(examples: Examples, new: Categories, source: str) -> None:
    """Refuse classes of which ``source`` shows nothing.

    Raises:
        ValueError: it names them.
    """
    if empty := [name for name, x in zip(new.names, examples.features, strict=True) if not len(x)]:
        raise ValueError(f"{source}: not one box to learn from of {', '.join(empty)}")


def weights_of(examples: Examples, weight: Tensor, reserve: float) -> Tensor:
    """(N, C): the weights of N new classes beside those that were trained, ``weight`` (K, C)."""
    return torch.stack([prototype(x, examples.common, weight, reserve) for x in examples.features])


def describe(examples: Examples, new: Categories, added: Tensor, known: Categories, weight: Tensor) -> list[Added]:
    """A row for each new class; ``added`` (N, C) are the new weights."""
    rows = []
    nearest = cosines(added, weight).max(1)
    for k, x in enumerate(examples.features):
        least = float(cosines(x, added[k : k + 1]).min())
        near = known.names[int(nearest.indices[k])]
        rows.append(Added(new.names[k], new.ids[k], len(x), least, near, float(nearest.values[k])))
    return rows


def table_of(rows: Iterable[Added]) -> Table:
    """The rows, to be printed by rich."""
    table = Table(title="added classes", title_justify="left")
    for heading in ("class", "examples", "least cosine of one", "nearest known class", "its cosine"):
        table.add_column(heading, justify="left" if "class" in heading else "right")
    for row in rows:
        table.add_row(
            row.name, str(row.num_examples), f"{row.least_cosine:.3f}", row.nearest, f"{row.nearest_cosine:.3f}"
        )
    return table


def grown(
    checkpoint: Checkpoint, regions: CosineRegions, model: Mapping[str, Any], new: Categories, added: Tensor
) -> Checkpoint:
    """``checkpoint`` with the classes ``new``, whose weights are ``added`` (N, C).

    It is one to use, or to start a training from, but not to go on with: no average, optimiser or metrics, and no
    thresholds, which were found without these classes. Where classes have boxes of their own, a new one has their mean,
    and they keep them, however many classes that makes.

    Raises:
        ValueError: the model has other tensors of each class, which nothing is known of.
        CheckpointError: the weights are not those of the model with these classes.
    """
    known = checkpoint.categories
    order = _order(known, new)
    both = Categories((*known.names, *new.names), (*known.ids, *new.ids))
    categories = Categories(tuple(both.names[k] for k in order), tuple(both.ids[k] for k in order))
    weights, config = dict(checkpoint.weights), checkpoint.config
    boxes = [f"head.roi.network.bbox_pred.{name}" for name in ("weight", "bias")]
    for name in class_layers(model, known):
        if name == f"{regions.name}.weight":
            rows = torch.cat([weights[name], added.to(weights[name])])
        elif name in boxes and len(weights[name]) == 4 * len(known):
            of_classes = weights[name].unflatten(0, (len(known), 4))
            rows = torch.cat([of_classes, of_classes.mean(0, keepdim=True).expand(len(new), *of_classes.shape[1:])])
        else:
            raise ValueError(f"{checkpoint.source}: {name} has numbers of each class, and a new one's are not known")
        weights[name] = rows[order].flatten(0, 1) if name in boxes else rows[order]
        if name in boxes:
            model, config = _never_shared(model), {**config, "model": _never_shared(config["model"])}
    load_weights(build_detector(model, categories), weights, checkpoint.source)
    return dataclasses.replace(
        checkpoint, detector=weights, categories=categories, config=config, average=None, training=None, metrics={},
        calibration=None,
    )  # fmt: skip


def _never_shared(model: Mapping[str, Any]) -> dict[str, Any]:
    """``model`` without a number of classes above which they share a box."""
    node = copy.deepcopy(dict(model))
    node["head"]["roi"]["network"]["agnostic_above"] = None
    return node


def _order(known: Categories, new: Categories) -> list[int]:
    """The labels of both, by their ids as data sets have them, unless the known ones are in another order already."""
    ids = [*known.ids, *new.ids]
    if list(known.ids) != sorted(known.ids):
        return list(range(len(ids)))
    return sorted(range(len(ids)), key=lambda k: ids[k])
