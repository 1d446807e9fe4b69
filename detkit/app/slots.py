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
    notes = []
    for choice in command.choices:
        if choice.is_removal:
            continue
        around = [c.argument for c in command.choices if c != choice and _is_within(choice.slot, c.slot)]
        before = _composed(loader, config_name, [*command.recipe, *around])
        for slot in list(_swapped(before, cfg, choice.slot)):
            if _nearest(slot, command.choices) != choice:
                continue
            fresh = OmegaConf.select(_alone(slot, choice, command, loader), slot)
            if fresh is None:
                continue
            old = OmegaConf.select(cfg, slot)
            _fill(fresh, old)
            note = _note(slot, choice, OmegaConf.select(before, slot), old, fresh)
            with open_dict(cfg):
                OmegaConf.update(cfg, slot, fresh, merge=False)
            notes += [note] if note else []
    return notes


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
            command.choices.append(Choice(override.package or group.replace("/", "."), _line(override)))
    return command


def _has_options(loader: ConfigLoader, group: str) -> bool:
    """Whether ``group`` is a group of options."""
    return bool(loader.get_group_options(group))


def _line(override: Override) -> str:
    assert override.input_line is not None
    return override.input_line


def _composed(loader: ConfigLoader, config_name: str | None, overrides: Sequence[str]) -> DictConfig:
    return loader.load_configuration(config_name, list(overrides), run_mode=RunMode.RUN)


def _swapped(before: DictConfig, after: DictConfig, slot: str) -> Iterator[str]:
    """The outermost slots at or below ``slot`` whose class differs; one that the recipe leaves empty is not swapped."""
    was, now = (OmegaConf.select(cfg, slot, default=None) for cfg in (before, after))
    if not (OmegaConf.is_dict(was) and OmegaConf.is_dict(now)):
        return
    targets = [_raw(node, "_target_") for node in (was, now)]
    if isinstance(targets[0], str) and targets[0] != targets[1]:
        yield slot
        return
    for name in now:
        yield from _swapped(before, after, f"{slot}.{name}")


def _alone(slot: str, choice: Choice, command: _Command, loader: ConfigLoader) -> DictConfig:
    """What ``choice`` alone makes, with what the command line says inside ``slot``.

    Raises:
        ConfigError: something is to be left out that is not there.
    """
    inside = [c.argument.lstrip("+") for c in command.choices if c != choice and _is_within(c.slot, slot)]
    of_slot = [v for v in command.values if _is_within(v.key_or_group, slot)]
    removed = [v for v in of_slot if v.is_delete()]
    said = ["++" + _line(v).lstrip("+") for v in of_slot if not v.is_delete()]
    chosen = [*command.elsewhere, "+" + choice.argument.lstrip("+")]
    try:
        made = _composed(loader, None, [*chosen, *inside, *said])
    except HydraException:  # a slot that the chosen preset leaves empty
        inside = [argument if argument.startswith("~") else f"+{argument}" for argument in inside]
        made = _composed(loader, None, [*chosen, *inside, *said])
    if not removed:
        return made
    if errors := [line for v in removed if (line := nothing_there(made, v.key_or_group, deleted=True))]:
        raise ConfigError([f"{line} ({choice.argument.lstrip('+')} starts from its own options)" for line in errors])
    try:
        return _composed(loader, None, [*chosen, *inside, *said, *map(_line, removed)])
    except HydraException as error:  # its value is another one, or null
        raise ConfigError(f"{choice.argument.lstrip('+')}: {in_one_line(error)}") from error


def _fill(fresh: DictConfig, old: DictConfig) -> None:
    """What ``fresh`` needs and has no default for stays as the recipe says it: a learning rate."""
    said = dict(_leaves(old))
    for key, value in _leaves(fresh):
        if value == "???" and key in said:
            OmegaConf.update(fresh, key, said[key])


def _note(slot: str, choice: Choice, before: DictConfig, old: DictConfig, fresh: DictConfig) -> str | None:
    """What was left out of ``slot``, in words; None where nothing was."""
    kept = dict(_leaves(fresh))
    lost = [f"{key}={_shown(value)}" for key, value in _leaves(old) if kept.get(key, _ABSENT) != value]
    if not lost:
        return None
    more = f" and {len(lost) - _MOST_SHOWN} more" if len(lost) > _MOST_SHOWN else ""
    return (
        f"{choice.argument.lstrip('+')}: {slot} is {_raw(fresh, '_target_')} now; left out what the recipe says there "
        f"for {_raw(before, '_target_')}: {', '.join(lost[:_MOST_SHOWN])}{more}"
    )


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


def _raw(node: DictConfig, name: str) -> Any:
    return OmegaConf.to_container(node, resolve=False).get(name)  # pyright: ignore


def _is_within(key: str, slot: str) -> bool:
    return key == slot or key.startswith(f"{slot}.")
