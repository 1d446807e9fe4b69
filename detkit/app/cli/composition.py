"""Whether a command line composes: slots that there are, and keys to leave out that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detkit.app.assemble.absent import nothing_there
from detkit.app.cli.in_vain import said_in_vain
from detkit.app.cli.overrides import nearest_group, wrong_choices
from detkit.config import ConfigError
from detkit.config.registry import did_you_mean

#: What Hydra says of a group override without a slot.
_NO_SLOT = re.compile(r"Could not (?:override|delete) '([^']*)'\.")


def check_composition(
    loader: ConfigLoader, config_name: str, arguments: Sequence[str], mode: RunMode = RunMode.RUN
) -> DictConfig:
    """``config_name`` composed with ``arguments``, normalised and without sweeps; Hydra's own part is in it.

    Raises:
        ConfigError: a choice without a slot, a file that cannot be composed, or something to leave out that is not
            there; each line has the nearest name.
    """
    try:
        cfg = loader.load_configuration(config_name, list(arguments), mode)
    except (HydraException, OmegaConfBaseException) as error:
        if errors := wrong_slots(loader, config_name, arguments, mode) or _idle(loader, config_name, arguments, mode):
            raise ConfigError(errors) from error
        told = in_one_line(error)
        if (found := _NO_SLOT.search(told)) and not _loader(loader).repository.group_exists(found[1].partition("@")[0]):
            told += nearest_group(found[1], _loader(loader).repository)
        raise ConfigError(told) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{mark.name}, line {mark.line + 1}: {error.problem}" if mark else str(error)) from error
    if errors := _idle(loader, config_name, arguments, mode):
        raise ConfigError(errors)
    if mode is RunMode.RUN and (errors := said_in_vain(loader, config_name, arguments, cfg)):
        raise ConfigError(errors)
    return cfg


def _idle(loader: ConfigLoader, config_name: str, arguments: Sequence[str], mode: RunMode) -> list[str]:
    """:func:`idle_removals`; none of a sweep, each of whose jobs is looked at."""
    return idle_removals(loader, config_name, arguments) if mode is RunMode.RUN else []


def wrong_groups(loader: ConfigLoader, arguments: Sequence[str]) -> list[str]:
    """A line for each group or option in ``arguments`` that there is not, with the nearest one."""
    return list(wrong_choices(OverridesParser.create().parse_overrides(list(arguments)), _loader(loader).repository))


def wrong_slots(
    loader: ConfigLoader, config_name: str, arguments: Sequence[str], mode: RunMode = RunMode.RUN
) -> list[str]:
    """A line for each choice whose slot the composed defaults do not have, with the nearest one."""
    kept, wrong = list(arguments), []
    while True:
        try:
            slots = _loader(loader).compute_defaults_list(config_name, kept, mode).overrides.known_choices
        except HydraException as error:
            found = _NO_SLOT.search(str(error))
            key = found[1].partition("=")[0] if found else None
            left = [a for a in kept if a.lstrip("~").partition("=")[0] != key]
            if len(left) == len(kept):
                return []  # it is another mistake, which composing tells
            wrong.append(key)
            kept = left
        else:
            break
    if not wrong:
        return []
    base = loader.load_configuration(config_name, kept, mode)
    return [_no_slot(key, slots, base) for key in wrong]


def _no_slot(key: str, slots: Iterable[str], base: DictConfig) -> str:
    group, _, package = key.partition("@")
    content: Any = OmegaConf.to_container(base, resolve=False)
    if package in (keys := set(_keys(content))):
        return f"{key}: nothing is chosen there yet; to put something in, write +{key}=NAME"
    ours = [slot for slot in slots if not slot.startswith("hydra/")]
    if same := sorted(slot for slot in ours if slot.partition("@")[0] == group):
        return f"{key}: there is no such slot{did_you_mean(key, same)}"
    if package and "did you mean" in (near := did_you_mean(package, keys)):
        return f"{key}: there is no key {package!r}{near}"
    whole = sorted(slot for slot in ours if "@" not in slot)
    return f"{key}: there is nothing of {group!r} to choose here; known: {', '.join(whole)}"


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """All keys below ``node``, dotted."""
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")


def idle_removals(loader: ConfigLoader, config_name: str, arguments: Sequence[str]) -> list[str]:
    """A line for each key that ``arguments`` set to null or delete though nothing stands there to leave out."""
    parser = OverridesParser.create()
    parsed = [parser.parse_override(argument) for argument in arguments]
    removals = [o for o in parsed if "/" not in o.key_or_group and o.package is None and _removes(o)]
    if not removals:
        return []
    kept = [o.input_line or "" for o in parsed if o not in removals or _is_choice(loader, o)]
    try:
        base = loader.load_configuration(config_name, kept, RunMode.RUN)
    except (HydraException, OmegaConfBaseException):
        return []  # composing tells it
    removed = [(o.key_or_group, o.is_delete()) for o in removals if not _is_choice(loader, o)]
    lines = (nothing_there(base, key, deleted) for key, deleted in removed)
    return [line for line in lines if line is not None]


def _removes(override: Override) -> bool:
    return override.is_delete() or (override.value_type is not None and override.value() is None)


def _is_choice(loader: ConfigLoader, override: Override) -> bool:
    return _loader(loader).repository.group_exists(override.key_or_group)


def _loader(loader: ConfigLoader) -> ConfigLoaderImpl:
    assert isinstance(loader, ConfigLoaderImpl)  # there is no other
    return loader


def in_one_line(error: Exception) -> str:
    """What Hydra says, without its advice, and the cause that it leaves for a second line."""
    what = str(error).strip().partition("\n")[0]
    if twice := re.fullmatch(r"Multiple values for (.*)\. To override .*", what):
        what = f"{twice[1]}: something is chosen there already; without the + another one takes its place"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        what += f"; there are {', '.join(error.options)}"
    if isinstance(error.__cause__, OmegaConfBaseException):
        what = ": ".join(filter(None, [what, str(error.__cause__).partition("\n")[0]]))
    return what
