"""What an experiment chooses inside a part, where the command line has put another part in its place.

``override /loss@model.head.box_loss: GIoULoss`` in an experiment names a slot of that experiment's head. Under
``model/head=two_stage`` there is no such slot, and Hydra would refuse the whole. As with what an experiment says inside
a slot (see :mod:`detkit.app.cli.slots`), such a choice goes with its part, and one line says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault, InputDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from detkit.app.cli.composition import check_composition
from detkit.app.cli.slots import choices_and_recipe
from detkit.config import ConfigError

_NO_SLOT = re.compile(r"In '([^']*)': Could not override '([^']*)'\.")


class Idle(NamedTuple):
    """A file of the configuration, and a slot that it chooses for though the composed configuration has none such."""

    file: str
    slot: str


def idle_choices(loader: ConfigLoader, config_name: str, arguments: Sequence[str]) -> list[Idle]:
    """The choices of files that have lost their slot to a choice among ``arguments``.

    Args:
        arguments: normalised and without sweeps.

    Returns:
        nothing where the files do not compose without ``arguments`` either: that is a mistake in them, and composing
        tells it.
    """
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    choices, recipe = choices_and_recipe(parsed, loader)
    found: list[Idle] = []
    while choices and (idle := _first_idle(loader, config_name, [*recipe, *choices], found)) is not None:
        if idle in found:  # it could not be left out
            return []
        found.append(idle)
    return found if not found or _first_idle(loader, config_name, recipe, []) is None else []


def _first_idle(loader: ConfigLoader, config_name: str, arguments: Sequence[str], left: Sequence[Idle]) -> Idle | None:
    try:
        with leaving_out(left):
            assert isinstance(loader, ConfigLoaderImpl)  # there is no other
            loader.compute_defaults_list(config_name, list(arguments), RunMode.RUN)
    except HydraException as error:
        return Idle(*match.groups()) if (match := _NO_SLOT.search(str(error))) else None
    return None


def told(idle: Idle, arguments: Sequence[str]) -> str:
    """The line that tells what was left out."""
    group, _, package = idle.slot.partition("@")
    around = [a for a in arguments if _is_around(a.lstrip("+").partition("=")[0], package or group.replace("/", "."))]
    because = f"{', '.join(around)}: " if around else ""
    return f"{because}left out what {idle.file} chooses for {idle.slot}, a slot that there is not now"


def _is_around(key: str, slot: str) -> bool:
    group, _, package = key.partition("@")
    outer = package or group.replace("/", ".")
    return slot.startswith(f"{outer}.")


def compose(
    loader: ConfigLoader, config_name: str, arguments: Sequence[str], mode: RunMode = RunMode.RUN
) -> tuple[DictConfig, list[Idle]]:
    """As :func:`~detkit.app.cli.composition.check_composition`, without choices that have lost their slot, and these.

    Raises:
        ConfigError: it does not compose.
    """
    try:
        return check_composition(loader, config_name, arguments, mode), []
    except ConfigError:
        if not (idle := idle_choices(loader, config_name, arguments)):
            raise
    with leaving_out(idle):
        return check_composition(loader, config_name, arguments, mode), idle


@contextmanager
def leaving_out(idle: Sequence[Idle]) -> Iterator[None]:
    """Within the block Hydra reads its files without these choices."""
    plain = ConfigRepository._create_defaults_list

    def kept(self: ConfigRepository, config_path: str, defaults) -> list[InputDefault]:
        read = plain(self, config_path, defaults)
        return [default for default in read if Idle(config_path, _slot(default)) not in idle]

    ConfigRepository._create_defaults_list = kept
    try:
        yield
    finally:
        ConfigRepository._create_defaults_list = plain


def _slot(default: InputDefault) -> str:
    """The slot that an override in a defaults list is for; empty for what is none."""
    if not (isinstance(default, GroupDefault) and default.is_override()):
        return ""
    group = (default.group or "").removeprefix("/")
    package = (default.package or "").removeprefix("_global_.")
    return f"{group}@{package}" if package else group
