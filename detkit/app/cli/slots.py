"""What a recipe says inside a slot, and what becomes of it when the command line puts another class there.

An experiment writes ``model.neck.out_channels: 64`` for the neck that it chooses, a head's preset ``positive: 0.7`` for
its assigner. Under ``model/neck=upsample`` or ``assigner@model.head.rpn.assigner=Mine`` such values would be laid over
a class that they were not written for, and at best be refused. The slot then starts from what was chosen alone; what
the command line itself says inside it stays, and so does what the new class has no default for (a learning rate).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from detkit.config import ConfigError
from detkit.config.registry import did_you_mean

_ABSENT = object()
_MOST_SHOWN = 6

#: What a model is that names no class: parts of one's choice (detkit/models/build.py).
_COMPOSED = "ComposedDetector"

#: Where else options are: every composition needs it.
_ELSEWHERE = "hydra.searchpath"


class Choice(NamedTuple):
    """A group's option on the command line: the slot that it fills and the argument, ``argument`` as it was given."""

    slot: str
    argument: str


class Settled(NamedTuple):
    """A slot, and what its content is composed of now: a root configuration, None for none, and arguments."""

    slot: str
    config_name: str | None
    arguments: tuple[str, ...]


class Compositions:
    """Configurations by what they are composed of, each composed once; as long as no file changes."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader
        self._known: dict[tuple[str | None, tuple[str, ...]], DictConfig] = {}

    def __call__(self, config_name: str | None, overrides: Sequence[str]) -> DictConfig:
        """What ``overrides`` make of the root ``config_name``; not to be changed."""
        key = config_name, tuple(overrides)
        if key not in self._known:
            self._known[key] = self.loader.load_configuration(config_name, list(overrides), run_mode=RunMode.RUN)
        return self._known[key]


def settle_slots(
    cfg: DictConfig,
    overrides: Sequence[str],
    config_name: str | None,
    composed: Compositions,
    settled: list[Settled] | None = None,
) -> list[str]:
    """Clear the slots of ``cfg`` to which ``overrides`` gave another class than the recipe has.

    Args:
        cfg: as Hydra has composed it; changed in place.
        overrides: the command line, normalised, with its ``hydra.searchpath``.
        config_name: of the root configuration.
        composed: what has been composed of the files as they are, which saves doing it again.
        settled: takes a record of each slot that has another content now.

    Returns:
        a line for each slot in which something was left out.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices, recipe, values = _sorted_out(parsed, composed.loader)
    if not choices:
        return []
    elsewhere = search_paths(recipe)
    notes: list[str | None] = []
    settled = [] if settled is None else settled
    for choice in choices:
        around = [c.argument for c in choices if c != choice and _is_within(choice.slot, c.slot)]
        before = composed(config_name, [*recipe, *around])
        brought = _brought_by(choice, elsewhere, composed)
        swapped = [*_swapped(before, cfg, choice.slot), *_overruled(brought, cfg, choice)]
        for slot in dict.fromkeys(swapped):
            if _nearest(slot, choices) != choice:
                continue
            alone, made = _alone(slot, choice, choices, elsewhere, values, composed)
            old = OmegaConf.select(cfg, slot)
            if (fresh := OmegaConf.select(alone, slot)) is None:
                if "_target_" not in old and not any(_is_within(_key(v), slot) for v in values):
                    notes.append(_note_of_none(slot, choice, OmegaConf.select(before, slot), old))
                    _remove(cfg, slot)
                continue
            _fill(fresh, old)
            notes.append(_note(slot, choice, OmegaConf.select(before, slot), old, fresh))
            _put(cfg, slot, fresh)
            settled.append(made)
        for slot in _swapped(brought, cfg, choice.slot):
            if slot in swapped or _nearest(slot, choices) != choice or OmegaConf.select(before, slot) is None:
                continue
            whole, made = _with_values([*recipe, *around], slot, values, composed, config_name)
            mine = OmegaConf.select(whole, slot)
            notes.append(_note_of_preset(slot, choice, OmegaConf.select(cfg, slot), mine))
            _put(cfg, slot, mine)
            settled.append(made)
    return [note for note in notes if note is not None]


def _brought_by(choice: Choice, elsewhere: Sequence[str], composed: Compositions) -> DictConfig:
    """What ``choice`` makes without any recipe; nothing where it does not stand alone.

    Where the recipe's own class stays in a slot all the same (its ``override /model/backbone``), what the choice says
    there is for another class: a preset's ``norm_eps`` of a ResNet.
    """
    try:
        return composed(None, [*elsewhere, "+" + choice.argument.lstrip("+")])
    except HydraException:
        return OmegaConf.create()


def _overruled(brought: DictConfig, cfg: DictConfig, choice: Choice) -> list[str]:
    """Where a recipe chooses a part itself, though the model that was chosen whole has another.

    The backbone stays as the recipe has it: it serves every model.
    """
    if choice.slot != "model":
        return []
    return [slot for slot in _swapped(brought, cfg, "model") if slot in ("model.neck", "model.head")]


def _put(cfg: DictConfig, slot: str, node: DictConfig) -> None:
    with open_dict(cfg):
        OmegaConf.update(cfg, slot, node, merge=False)


def _nearest(slot: str, choices: Sequence[Choice]) -> Choice | None:
    """The choice that says most closely what stands in ``slot``."""
    around = [c for c in choices if _is_within(slot, c.slot)]
    return max(around, key=lambda c: len(c.slot), default=None)


def search_paths(said: Sequence[str]) -> list[str]:
    """What a command line says of where options are, which Hydra keeps apart from the rest, among its own keys."""
    return [line for line in said if line.startswith(f"{_ELSEWHERE}=")]


def choices_and_recipe(parsed: Sequence[Override], loader: ConfigLoader) -> tuple[list[str], list[str]]:
    """The arguments that choose parts, and those that choose the recipe itself (experiment, debug)."""
    choices, recipe, _ = _sorted_out(parsed, loader)
    return [choice.argument for choice in choices], recipe


def _sorted_out(parsed: Sequence[Override], loader: ConfigLoader) -> tuple[list[Choice], list[str], list[Override]]:
    """The choices of parts, what belongs to the recipe (experiment, debug, where options are), and the plain values.

    Of two choices for one slot the last counts, as for Hydra.
    """
    choices: dict[str, Choice] = {}
    recipe, values = [], []
    for override in parsed:
        group = override.key_or_group
        if group == _ELSEWHERE:
            recipe.append(_line(override))
        elif override.is_delete() or isinstance(override.value(), dict) or not _has_options(loader, group):
            values.append(override)
        elif group.partition("/")[0] in ("experiment", "debug", "sweep", "hydra"):
            recipe.append(_line(override))
        else:
            slot = override.package or group.replace("/", ".")
            choices.pop(slot, None)
            choices[slot] = Choice(slot, _line(override))
    return list(choices.values()), recipe, values


def _has_options(loader: ConfigLoader, group: str) -> bool:
    assert isinstance(loader, ConfigLoaderImpl)  # there is no other
    return bool(loader.repository.get_group_options(group))


def _line(override: Override) -> str:
    assert override.input_line is not None
    return override.input_line


def _swapped(before: DictConfig, after: DictConfig, slot: str) -> Iterator[str]:
    """The outermost slots at or below ``slot`` whose class differs; one that the recipe leaves empty is not swapped."""
    was, now = (OmegaConf.select(cfg, slot, default=None) for cfg in (before, after))
    if OmegaConf.is_dict(was) and OmegaConf.is_dict(now):
        yield from _unlike(_plain(was), _plain(now), slot)


def _unlike(was: Mapping[str, Any], now: Mapping[str, Any], slot: str) -> Iterator[str]:
    before = _class_in(slot, was)
    if isinstance(before, str) and before != _class_in(slot, now):
        yield slot
        return
    for name, node in now.items():
        if isinstance(node, Mapping) and isinstance(was.get(name), Mapping):
            yield from _unlike(was[name], node, f"{slot}.{name}")


def _alone(
    slot: str,
    choice: Choice,
    choices: Sequence[Choice],
    elsewhere: Sequence[str],
    values: Sequence[Override],
    composed: Compositions,
) -> tuple[DictConfig, Settled]:
    """What ``choice`` alone makes, with what the command line says inside ``slot``, and of what that is composed."""
    inside = [c.argument.lstrip("+") for c in choices if c != choice and _is_within(c.slot, slot)]
    chosen = [*elsewhere, "+" + choice.argument.lstrip("+")]
    try:
        return _with_values([*chosen, *inside], slot, values, composed)
    except HydraException:  # a slot that the chosen preset leaves empty
        return _with_values([*chosen, *("+" + argument for argument in inside)], slot, values, composed)


def _with_values(
    arguments: Sequence[str],
    slot: str,
    values: Sequence[Override],
    composed: Compositions,
    config_name: str | None = None,
) -> tuple[DictConfig, Settled]:
    """What ``arguments`` compose, with those of ``values`` that act inside ``slot``, removals too."""
    said = [v for v in values if _is_within(_key(v), slot)]
    whole = [*arguments, *(_line(v) for v in said if not v.is_delete())]
    cfg = copy.deepcopy(composed(config_name, whole))
    for removal in said:
        if removal.is_delete():
            _remove(cfg, _key(removal))
    return cfg, Settled(slot, config_name, tuple(whole))


def _key(override: Override) -> str:
    """Where in the configuration ``override`` acts."""
    return override.package or override.key_or_group.replace("/", ".")


def _remove(cfg: DictConfig, key: str) -> None:
    """Take ``key`` out of what was swapped in.

    Raises:
        ConfigError: it has no such key, whatever the recipe had there.
    """
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    known = list(map(str, node.keys())) if OmegaConf.is_dict(node) else []
    if name not in known:
        raise ConfigError(f"~{key}: there is no {name!r} to leave out{did_you_mean(name, known)}")
    with open_dict(node):
        del node[name]


def _fill(fresh: DictConfig, old: DictConfig) -> None:
    """What ``fresh`` needs and has no default for stays as the recipe says it: a learning rate."""
    said = dict(_leaves(old))
    for key, value in _leaves(fresh):
        if value == "???" and key in said:
            OmegaConf.update(fresh, key, said[key])


def _note(slot: str, choice: Choice, before: DictConfig, old: DictConfig, fresh: DictConfig) -> str | None:
    """What was left out of ``slot``, in words; None where nothing was."""
    if not (lost := _lost(old, fresh)):
        return None
    return (
        f"{choice.argument.lstrip('+')}: {slot} is {_class_in(slot, _plain(fresh))} now; left out what the recipe says "
        f"there for {_class_in(slot, _plain(before))}: {lost}"
    )


def _note_of_none(slot: str, choice: Choice, before: DictConfig, old: DictConfig) -> str:
    """As :func:`_note`, of a part that the choice does not have at all: a step of other transforms."""
    return (
        f"{choice.argument.lstrip('+')}: there is no {slot} now; left out what the recipe says there for "
        f"{_class_in(slot, _plain(before))}: {_lost(old, OmegaConf.create())}"
    )


def _note_of_preset(slot: str, choice: Choice, old: DictConfig, mine: DictConfig) -> str | None:
    """As :func:`_note`, of what the preset says for a class that the recipe does not have there."""
    if not (lost := _lost(old, mine)):
        return None
    return (
        f"{choice.argument.lstrip('+')}: {slot} stays the recipe's {_class_in(slot, _plain(mine))}; left out what the "
        f"preset says there for another class: {lost}"
    )


def _lost(old: DictConfig, new: DictConfig) -> str:
    """The values of ``old`` that ``new`` does not have."""
    kept = dict(_leaves(new))
    lost = [f"{key}={_shown(value)}" for key, value in _leaves(old) if kept.get(key, _ABSENT) != value]
    more = f" and {len(lost) - _MOST_SHOWN} more" if len(lost) > _MOST_SHOWN else ""
    return ", ".join(lost[:_MOST_SHOWN]) + more


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if not isinstance(plain, Mapping):
        yield key, plain
        return
    for name, value in plain.items():
        if name not in ("_target_", "_partial_"):
            yield from _leaves(value, f"{key}.{name}" if key else str(name))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _class_in(slot: str, node: Mapping[str, Any]) -> Any:
    return node.get("_target_", _COMPOSED if slot == "model" else None)


def _plain(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=False)


def _is_within(key: str, slot: str) -> bool:
    return key == slot or key.startswith(f"{slot}.")
