"""What a recipe says inside a slot, and what becomes of it when the command line puts another class there.

An experiment writes ``model.neck.out_channels: 64`` for the neck that it chooses, a head's preset ``positive: 0.7`` for
its assigner. Under ``model/neck=upsample`` or ``assigner@model.head.rpn.assigner=Mine`` such values would be laid over
a class that they were not written for, and at best be refused. The slot then starts from what was chosen alone; what
the command line itself says inside it stays, and so does what the new class has no default for (a learning rate).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.conf import OverridesConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from detkit.app.composition import in_one_line, nothing_there
from detkit.app.inner_overrides import inner_overrides, slot_of
from detkit.config import ConfigError

_ABSENT = object()
_MOST_SHOWN = 6

#: Groups whose options are recipes, which say what stands in the slots.
_RECIPES = ("experiment", "debug", "sweep", "hydra")


class Choice(NamedTuple):
    """A group's option on the command line: the slot that it fills and the argument, ``argument`` as it was given."""

    slot: str
    argument: str

    @property
    def is_removal(self) -> bool:
        """Whether the slot is to be left empty."""
        return self.argument.startswith("~")


class _Command(NamedTuple):
    """A command line, sorted.

    The choices of parts, what belongs to the recipe itself, values and keys to leave out, and where else options are.
    """

    choices: list[Choice]
    recipe: list[str]
    values: list[Override]
    elsewhere: list[str]


def settle_slots(cfg: DictConfig, overrides: Sequence[str], config_name: str | None, loader: ConfigLoader) -> list[str]:
    """Clear the slots of ``cfg`` to which ``overrides`` gave another class than the recipe has.

    Args:
        cfg: as Hydra has composed it; changed in place.
        overrides: the command line, normalised, with its ``hydra.searchpath``.
        config_name: of the root configuration.

    Returns:
        a line for each slot in which something was left out.

    Raises:
        ConfigError: the command line leaves out of such a slot what its own options do not have.
    """
    command = _sorted_out(OverridesParser.create().parse_overrides(list(overrides)), loader)
    if not command.choices:
        return []
    inner = _inner(overrides, config_name, command, loader)
    notes = []
    for choice in command.choices:
        if choice.is_removal:
            continue
        around = [c.argument for c in command.choices if c != choice and _is_within(choice.slot, c.slot)]
        before = _composed(loader, config_name, [*command.recipe, *around])
        nodes = (_at(made, choice.slot) for made in (before, cfg))
        slots = [*_swapped(*nodes, choice.slot), *_overruled(cfg, choice, command, loader)]
        for slot in dict.fromkeys(slots):
            if _nearest(slot, command.choices) != choice:
                continue
            fresh = OmegaConf.select(_alone(slot, choice, command, loader), slot)
            if fresh is None:
                continue
            old = OmegaConf.select(cfg, slot)
            _fill(fresh, old)
            lost = [*_lost(old, fresh), *inner.pop(choice, [])]
            notes += [_note(slot, choice, _at(before, slot), fresh, lost)] if lost else []
            with open_dict(cfg):
                OmegaConf.update(cfg, slot, fresh, merge=False)
    return notes + [f"{_said(c)}: left out what the recipe chooses there: {_few(lost)}" for c, lost in inner.items()]


def _inner(
    overrides: Sequence[str], config_name: str | None, command: _Command, loader: ConfigLoader
) -> dict[Choice, list[str]]:
    """What the recipe chooses inside a slot that a choice has taken, by choice."""
    found: dict[Choice, list[str]] = {}
    for override in inner_overrides(loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).overrides):
        if (choice := _nearest(slot_of(override.key), command.choices)) is not None:
            found.setdefault(choice, []).append(str(override))
    return found


def search_paths(said: OverridesConf) -> list[str]:
    """What a command line says of where options are, which Hydra keeps apart from the rest."""
    return [line for line in said.hydra if line.startswith("hydra.searchpath=")]


def _nearest(slot: str, choices: Sequence[Choice]) -> Choice | None:
    """The choice that says most closely what stands in ``slot``."""
    around = [c for c in choices if not c.is_removal and _is_within(slot, c.slot)]
    return max(around, key=lambda c: len(c.slot), default=None)


def _sorted_out(parsed: Sequence[Override], loader: ConfigLoader) -> _Command:
    command = _Command([], [], [], [])
    for override in parsed:
        group = override.key_or_group
        if group == "hydra.searchpath":
            command.recipe.append(_line(override))
            command.elsewhere.append(_line(override))
        elif isinstance(override.value(), dict) or not _has_options(loader, group):
            command.values.append(override)
        elif group.partition("/")[0] in _RECIPES:
            command.recipe.append(_line(override))
        else:
            command.choices.append(Choice(slot_of(override.get_key_element().lstrip("+~")), _line(override)))
    return command


def _has_options(loader: ConfigLoader, group: str) -> bool:
    """Whether ``group`` is a group of options."""
    return bool(loader.get_group_options(group))


def _line(override: Override) -> str:
    assert override.input_line is not None
    return override.input_line


def _composed(loader: ConfigLoader, config_name: str | None, overrides: Sequence[str]) -> DictConfig:
    return loader.load_configuration(config_name, list(overrides), run_mode=RunMode.RUN)


def _swapped(was: Any, now: Any, slot: str) -> Iterator[str]:
    """The outermost slots at or below ``slot`` whose class differs; one that the recipe leaves empty is not swapped."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return
    targets = [node.get("_target_") for node in (was, now)]
    is_whole = slot == "model" and isinstance(targets[1], str)  # a detector that has no such parts
    if (is_whole or isinstance(targets[0], str)) and targets[0] != targets[1]:
        yield slot
        return
    for name in now:
        yield from _swapped(was.get(name), now[name], f"{slot}.{name}")


def _overruled(cfg: DictConfig, choice: Choice, command: _Command, loader: ConfigLoader) -> Iterator[str]:
    """Where the recipe chooses a part of the model itself, though the model that was chosen whole has another.

    The backbone stays as the recipe has it: it serves every model.
    """
    if choice.slot != "model":
        return
    alone = _alone("model", choice, command, loader)
    for slot in ("model.neck", "model.head"):
        nodes = [_at(made, slot) for made in (alone, cfg)]
        if all(isinstance(node, dict) for node in nodes) and len({node.get("_target_") for node in nodes}) > 1:
            yield slot


def _alone(slot: str, choice: Choice, command: _Command, loader: ConfigLoader) -> DictConfig:
    """What ``choice`` alone makes, with what the command line says inside ``slot``.

    Raises:
        ConfigError: something is to be left out that is not there.
    """
    inside = [c.argument.lstrip("+") for c in command.choices if c != choice and _is_within(c.slot, slot)]
    of_slot = [v for v in command.values if _is_within(v.key_or_group, slot)]
    removed = [v for v in of_slot if v.is_delete()]
    said = ["++" + _line(v).lstrip("+") for v in of_slot if not v.is_delete()]
    chosen = [*command.elsewhere, "+" + _said(choice)]
    try:
        made = _composed(loader, None, [*chosen, *inside, *said])
    except HydraException:  # a slot that the chosen preset leaves empty
        inside = [argument if argument.startswith("~") else f"+{argument}" for argument in inside]
        made = _composed(loader, None, [*chosen, *inside, *said])
    if not removed:
        return made
    if errors := [line for v in removed if (line := nothing_there(made, v.key_or_group, deleted=True))]:
        raise ConfigError([f"{line} ({_said(choice)} starts from its own options)" for line in errors])
    try:
        return _composed(loader, None, [*chosen, *inside, *said, *map(_line, removed)])
    except HydraException as error:  # its value is another one, or null
        raise ConfigError(f"{_said(choice)}: {in_one_line(error)}") from error


def _fill(fresh: DictConfig, old: DictConfig) -> None:
    """What ``fresh`` needs and has no default for stays as the recipe says it: a learning rate."""
    said = dict(_leaves(old))
    for key, value in _leaves(fresh):
        if value == "???" and key in said:
            OmegaConf.update(fresh, key, said[key])


def _lost(old: DictConfig, fresh: DictConfig) -> list[str]:
    """What ``old`` says and ``fresh`` does not."""
    kept = dict(_leaves(fresh))
    return [f"{key}={_shown(value)}" for key, value in _leaves(old) if kept.get(key, _ABSENT) != value]


def _note(slot: str, choice: Choice, before: Any, fresh: DictConfig, lost: Sequence[str]) -> str:
    """What was left out of ``slot``, in words."""
    classes = [fresh.get("_target_"), before.get("_target_", "the parts before")]
    left = f"left out what the recipe says there for {classes[1]}: {_few(lost)}"
    return f"{_said(choice)}: {slot} is {classes[0]} now; {left}"


def _few(lost: Sequence[str]) -> str:
    more = f" and {len(lost) - _MOST_SHOWN} more" if len(lost) > _MOST_SHOWN else ""
    return ", ".join(lost[:_MOST_SHOWN]) + more


def _said(choice: Choice) -> str:
    return choice.argument.lstrip("+")


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


def _at(cfg: DictConfig, slot: str) -> Any:
    """What stands in ``slot``, interpolations as they stand (what they lead to may be missing); None for nothing."""
    node: Any = OmegaConf.to_container(cfg, resolve=False)
    for name in slot.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _is_within(key: str, slot: str) -> bool:
    return key == slot or key.startswith(f"{slot}.")
