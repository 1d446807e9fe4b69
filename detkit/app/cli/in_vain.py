"""What a configuration says in vain: a null for what is not there, a size or a folder that nothing reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detkit.app.assemble.identity import leaves
from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.slots import choices_and_recipe
from detkit.config import ConfigError
from detkit.config.registry import did_you_mean
from detkit.config.validate import names_freely

#: Keys that are there for others to point to, who these are, and what to do where none does.
_POINTED_AT = {
    "transform.size": ("step", "set the steps' own sizes, or choose a transform that has it, like square_320"),
    "data.root": ("data set", "set data.train.root and data.val.root"),
}


class _File(NamedTuple):
    """What one file of a configuration says at ``package`` of the whole."""

    name: str
    package: str
    content: Mapping[str, Any]


def said_in_vain(loader: ConfigLoader, config_name: str | None, arguments: Sequence[str], cfg: DictConfig) -> list[str]:
    """A line for each.

    Args:
        arguments: normalised and without sweeps.
        cfg: what they compose.
    """
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    content.pop("hydra", None)
    return [*_idle_nulls(loader, config_name, arguments, content), *_unread(loader, arguments, content)]


def leave_unread_empty(cfg: DictConfig) -> None:
    """Set to null what is there for others to point to (``data.root``), where it has no value and nobody does."""
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    for key in _POINTED_AT:
        if _at(content, key) == "???" and not any(_points_to(value, key) for _, value in leaves(content)):
            OmegaConf.update(cfg, key, None)


def _idle_nulls(
    loader: ConfigLoader, config_name: str | None, arguments: Sequence[str], content: Mapping[str, Any]
) -> Iterator[str]:
    """Of each file that sets a name to null (a step, a callback) which no other file gives to anything.

    What the command line swaps away (``transform=flip`` on an experiment that leaves out the resize of another
    transform) was there in the recipe. The command line's own nulls are told by ``idle_removals``.
    """
    found = {key: file for key, file in _nulls(loader, config_name, arguments, content).items() if file is not None}
    if not found:
        return
    recipe = choices_and_recipe(OverridesParser.create().parse_overrides(list(arguments)), loader)[1]
    for part in recipe:
        alone = _nulls(loader, config_name, [part], content)
        found = {key: file for key, file in found.items() if alone.get(key, file) is not None}
    for key, file in found.items():
        parent, _, name = key.rpartition(".")
        known = [other for other in _at(content, parent) if f"{parent}.{other}" not in found]
        yield f"{file}: {key}: there is no {name!r} to leave out{did_you_mean(name, known)}"


def _nulls(
    loader: ConfigLoader, config_name: str | None, arguments: Sequence[str], content: Mapping[str, Any]
) -> dict[str, str | None]:
    """The freely given names that are null in ``content``, and which file says so of nothing; None where something is.

    A name of which no file says anything is left out: it is the command line's.
    """
    keys = [key for key, value in leaves(content) if value is None and _is_free(content, key)]
    files = _files(loader, config_name, arguments) if keys else []
    found: dict[str, str | None] = {}
    for key in keys:
        said = {file.name: _said(file, key) for file in files}
        nulls = [name for name, value in said.items() if value is None]
        if any(value is not None and value is not _NOTHING for value in said.values()):
            found[key] = None
        elif nulls:
            found[key] = nulls[-1]
    return found


def _is_free(content: Mapping[str, Any], key: str) -> bool:
    try:
        return names_freely(content, TrainSchema, key.rpartition(".")[0])
    except ConfigError:  # a component that there is not, which the checker tells
        return False


def _files(loader: ConfigLoader, config_name: str | None, arguments: Sequence[str]) -> list[_File]:
    """All files, and classes with their defaults, of which ``arguments`` compose a configuration."""
    assert isinstance(loader, ConfigLoaderImpl)  # there is no other
    try:
        defaults = loader.compute_defaults_list(config_name, list(arguments), RunMode.RUN).defaults
        repository = loader._parse_overrides_and_create_caching_repo(config_name, list(arguments))[1]
        read = [(d, repository.load_config(d.config_path)) for d in defaults if d.config_path]
    except HydraException:
        return []  # composing tells it
    return [
        _File(f"{d.config_path}.yaml", d.package or "", OmegaConf.to_container(found.config, resolve=False))  # pyright: ignore
        for d, found in read
        if found is not None
    ]


_NOTHING = object()


def _said(file: _File, key: str) -> Any:
    """What ``file`` says at ``key``; ``_NOTHING`` for nothing."""
    node: Any = file.content
    for name in reversed(file.package.split(".") if file.package else []):
        node = {name: node}
    return _at(node, key, _NOTHING)


def _at(node: Any, key: str, default: Any = None) -> Any:
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node


def _unread(loader: ConfigLoader, arguments: Sequence[str], content: Mapping[str, Any]) -> Iterator[str]:
    """What the command line, or an experiment that nothing else is chosen for, says for others to read, who do not."""
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    choices, recipe = choices_and_recipe(parsed, loader)
    is_recipes_own = not choices and len(recipe) <= 1
    for key, (reader, advice) in _POINTED_AT.items():
        section = content.get(key.partition(".")[0])
        if not isinstance(section, Mapping) or "train" not in section or _at(content, key) in (None, "???"):
            continue
        if not any(name.endswith("_target_") for name, _ in leaves(section)):
            continue  # some words on top of a checkpoint's configuration, which has the readers
        is_said = is_recipes_own or any(o.key_or_group == key for o in parsed)
        if is_said and not any(_points_to(value, key) for _, value in leaves(content)):
            yield f"{key}: no {reader} of this configuration reads it (${{{key}}}); {advice}"


def _points_to(value: Any, key: str) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return any(_points_to(item, key) for item in value)
    if isinstance(value, Mapping):
        return any(_points_to(item, key) for item in value.values())
    is_relative = isinstance(value, str) and "${." in value and key.rpartition(".")[2] in value
    return isinstance(value, str) and "${" in value and (key in value or is_relative)
