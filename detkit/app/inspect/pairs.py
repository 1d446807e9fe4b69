"""Which part goes with which recipe: every choice that the command line offers, tried on an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from detkit.app.assemble.parts import build_transforms, without_pretrained_weights
from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.composer import Composer
from detkit.app.cli.paths import config_dir
from detkit.config import ConfigError, Registry, build, validate
from detkit.config.registry import parameters, resolve
from detkit.config.validate import alternatives
from detkit.models import build_detector
from detkit.structures import Categories

#: Groups whose presets fill a section or a part of the model, where it has that part.
SECTIONS = ("model", "model/backbone", "model/neck", "model/head", "data", "transform", "optim", "schedule")

_CATEGORIES = Categories(("a", "b", "c"), (1, 2, 3))


class Pair(NamedTuple):
    """An experiment and one choice on the command line; ``refused`` is the line that says why not, None if it fits."""

    experiment: str
    choice: str
    refused: str | None


def choices(composer: Composer, experiment: str) -> list[str]:
    """What the command line can put into ``experiment``: every preset of a section, every class for a slot."""
    said = [f"experiment={experiment}"]
    model: Any = OmegaConf.to_container(composer(*said).cfg.model, resolve=False)
    there = [group for group in SECTIONS if group.partition("/")[2] in ("", *model)]
    sections = [f"{group}={name}" for group in there for name in _presets(group)]
    chosen = composer.slots(*said)
    return [*sections, *(_as_typed(choice, chosen) for choice in _for_slots(model, "model"))]


def _as_typed(choice: str, chosen: Set[str]) -> str:
    """``choice`` as the command line wants it: without its slot where the group is at home there, with a ``+`` where
    the configuration chooses nothing yet."""
    key, _, name = choice.partition("=")
    group, _, slot = key.partition("@")
    if slot == group.replace("/", ".") and group in chosen:
        return f"{group}={name}"
    return choice if key in chosen else f"+{choice}"


def _presets(group: str) -> list[str]:
    """The files of ``group``; where it has none, its classes."""
    return _files(group) or [
        name for registry in Registry.kinds().values() if registry.group == group for name in registry
    ]


def _files(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def _for_slots(node: Mapping[str, Any], key: str) -> Iterator[str]:
    """The choices for the slots inside the component or section ``node``."""
    arguments = parameters(resolve(node["_target_"])) if "_target_" in node else {}
    for name, inner in node.items():
        if not isinstance(inner, Mapping):
            continue
        if name in arguments and "_target_" in inner:
            yield from _for_slot(f"{key}.{name}", arguments[name].annotation)
        yield from _for_slots(inner, f"{key}.{name}")


def _for_slot(key: str, annotation: Any) -> Iterator[str]:
    kinds = tuple(kind for kind in alternatives(annotation) if isinstance(kind, type) and kind is not type(None))
    for registry in Registry.kinds().values():
        fitting = [
            name
            for name in registry
            if kinds and issubclass(registry[name], kinds) and not registry[name].__module__.startswith("tests.")
        ]
        if len(fitting) > 1 and _files(registry.group):  # presets, since the classes alone lack their parts
            fitting = _files(registry.group)
        yield from (f"{registry.group}@{key}={name}" for name in fitting)


def try_pair(composer: Composer, experiment: str, choice: str) -> Pair:
    """Compose ``experiment`` with ``choice``, check it, and build everything that needs no data."""
    try:
        cfg = composer(f"experiment={experiment}", choice, "data.root=anywhere").cfg
        validate(cfg, TrainSchema)
        _build(cfg)
    except (ConfigError, ValueError) as error:
        return Pair(experiment, choice, str(error).replace("\n", ";"))
    return Pair(experiment, choice, None)


def pair_table(experiment: str, pairs: Sequence[Pair]) -> Table:
    """The choices for each slot, those that do not fit apart; printed by rich."""
    fitting = sum(pair.refused is None for pair in pairs)
    title = f"experiment={experiment}: {fitting} of {len(pairs)} choices compose and build"
    table = Table(title=title, title_justify="left")
    for heading in ("slot", "fits", "does not"):
        table.add_column(heading, overflow="fold")
    slots: dict[str, tuple[list[str], list[str]]] = {}
    for pair in pairs:
        slot, _, name = pair.choice.partition("=")
        slots.setdefault(slot, ([], []))[pair.refused is not None].append(name)
    for slot, (fits, refused) in slots.items():
        table.add_row(slot, ", ".join(fits), ", ".join(refused))
    return table


def _build(cfg: DictConfig) -> None:
    node: Any = OmegaConf.to_container(cfg, resolve=True)
    without_pretrained_weights(node["model"])
    detector = build_detector(node["model"], _CATEGORIES)
    build(node["optim"], key="optim")(detector, 2)
    build(node["schedule"], key="schedule")
    for split in ("train", "val"):
        build_transforms(node["transform"][split], f"transform.{split}")
