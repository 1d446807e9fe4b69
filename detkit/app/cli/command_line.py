"""A tool's whole command line: flags apart from overrides, and what is wrong with either told before Hydra starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from detkit.app.cli.composition import in_one_line
from detkit.app.cli.idle import Idle, compose, leaving_out, told
from detkit.app.cli.in_vain import leave_unread_empty
from detkit.app.cli.overrides import normalize_overrides, parse, wrong_choices
from detkit.app.cli.paths import search_path
from detkit.app.cli.slots import Compositions, settle_slots
from detkit.app.cli.usage import experiments, usage
from detkit.config import ConfigError
from detkit.config.registry import did_you_mean
from detkit.config.validate import plain
from detkit.utils.commands import command
from detkit.utils.dist import processes_started

#: Tools that do nothing without an experiment.
_NEED_AN_EXPERIMENT = ("train", "audit")


def read_command_line(arguments: Sequence[str], config_name: str) -> tuple[list[str], list[Idle]]:
    """``arguments`` as Hydra wants them, flags first, then the overrides, normalised; and what files choose in vain.

    Raises:
        ConfigError: a flag, an argument, a group or an option that there is not, or what does not compose; each with
            the nearest right one. Without any argument, where an experiment is needed: the list of them.
    """
    options = _parse_flags(arguments)
    flags = _without(arguments, options.overrides)
    if options.hydra_help or options.shell_completion or options.experimental_rerun:
        return [*flags, *options.overrides], []
    loader = ConfigLoaderImpl(search_path(options.config_dir, options.config_path))
    repository = _repository(loader, options.overrides)
    if config_name in _NEED_AN_EXPERIMENT and not (options.overrides or options.config_name or options.info):
        raise ConfigError(_experiments(config_name, repository))
    config_name = options.config_name or config_name
    if not repository.config_exists(config_name):
        known = repository.get_group_options("")
        raise ConfigError(f"--config-name: no file {config_name!r}{did_you_mean(config_name, known)}")
    is_sweep = options.multirun or any(o.replace("'", "").lower() == "hydra.mode=multirun" for o in options.overrides)
    if is_sweep and (count := processes_started()) > 1:
        raise ConfigError(f"-m: torchrun has started {count} processes, but a sweep starts its own: leave torchrun out")
    overrides = normalize_overrides(options.overrides, repository.group_exists, sweep=is_sweep)
    parsed = parse(overrides, repository, sweep=is_sweep)
    if errors := list(wrong_choices(parsed, repository)):
        raise ConfigError(errors)
    fixed = [override for override, read in zip(overrides, parsed, strict=True) if not read.is_sweep_override()]
    _, idle = compose(loader, config_name, fixed, RunMode.MULTIRUN if is_sweep else RunMode.RUN)
    return [*flags, *overrides], idle


def help_wanted(arguments: Sequence[str], config_name: str) -> str | None:
    """What a tool answers to ``--help``; None where ``arguments`` do not ask for it.

    Raises:
        ConfigError: a flag that there is not.
    """
    options = _parse_flags(arguments)
    if not options.help:
        return None
    loader = ConfigLoaderImpl(search_path(options.config_dir, options.config_path))
    return usage(config_name, _repository(loader, options.overrides))


def configuration_wanted(
    arguments: Sequence[str], config_name: str, idle: Sequence[Idle]
) -> tuple[str, list[str]] | None:
    """What a tool answers to ``--cfg job``: the configuration that it would run with, and the notes that it would tell.

    Hydra's own answer has a swapped part with what the recipe says for the one before.

    Args:
        arguments: as :func:`read_command_line` returns them, and what it says of ``idle`` choices.

    Returns:
        None where ``arguments`` do not ask for it.

    Raises:
        ConfigError: there is no such ``--package``, or with ``--resolve`` a value that has to be given.
    """
    options = _parse_flags(arguments)
    if options.cfg != "job":
        return None
    loader, name = ConfigLoaderImpl(search_path(options.config_dir, options.config_path)), options.config_name
    with leaving_out(idle):
        cfg = loader.load_configuration(name or config_name, options.overrides, RunMode.RUN)
        notes = settle_slots(cfg, options.overrides, name or config_name, Compositions(loader))
    leave_unread_empty(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    package = None if options.package == "_global_" else options.package
    shown: Any = OmegaConf.create(plain(cfg)) if options.resolve else cfg
    if package is not None and (shown := OmegaConf.select(shown, package)) is None:
        raise ConfigError(f"--package: there is nothing at {package!r}")
    text = OmegaConf.to_yaml(shown) if OmegaConf.is_config(shown) else f"{shown}\n"
    header = f"# @package {package}\n" if package is not None and OmegaConf.is_config(shown) else ""
    return header + text, [told(one, options.overrides) for one in idle] + notes


def _parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags, which may stand between overrides."""
    parser = get_args_parser()
    options, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        bare = unknown[0].lstrip("-")
        known = [f for action in parser._actions for f in action.option_strings if f.startswith("--")]
        hint = f"; a key has no dashes: {bare}" if "=" in bare else did_you_mean(unknown[0], known)
        raise ConfigError(f"{unknown[0]}: there is no such flag{hint or '; --help shows what there is'}")
    commands = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{name.replace('_', '-')}" for name in commands if getattr(options, name)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other")
    if options.resolve and not options.cfg:
        raise ConfigError("--resolve goes with --cfg alone")
    return options


def _without(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The flags among ``arguments``, with their values: all but the ``overrides``, which are in their order."""
    left = list(overrides)
    return [argument for argument in arguments if not (left and argument == left[0] and left.pop(0) is not None)]


def _repository(loader: ConfigLoaderImpl, overrides: Sequence[str]) -> IConfigRepository:
    """All configurations that can be named, those of hydra.searchpath too."""
    paths = [override for override in overrides if override.startswith("hydra.searchpath=")]
    try:
        return loader._parse_overrides_and_create_caching_repo(None, paths)[1]
    except HydraException as error:
        raise ConfigError(in_one_line(error)) from error


def _experiments(tool: str, repository: IConfigRepository) -> str:
    """What can follow the command, a line for each experiment."""
    lines = [f"  {line}" for line in experiments(repository)]
    return "\n".join([f"choose an experiment: {command(tool)} experiment=NAME", *lines])
