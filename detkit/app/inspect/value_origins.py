"""Where each value of a composed configuration comes from: a file and line, a class, the command line, the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.markup import escape
from rich.table import Table

from detkit.app.assemble.identity import leaves
from detkit.app.cli.composer import Composed, Composer
from detkit.app.cli.idle import leaving_out
from detkit.app.cli.slots import Settled
from detkit.app.inspect.places import place_of_argument, place_of_choice, place_of_key
from detkit.config import ConfigError
from detkit.config.registry import RUNTIME_ARGUMENTS, did_you_mean, parameters, resolve, runtime_arguments

COMMAND_LINE = "command line"

#: Where an argument that never stands in a configuration comes from.
_AT_RUN_TIME = {
    "num_classes": ("as many as the data have", "data set: its classes"),
    "class_counts": ("as many as the data have of each", "data set: the objects of its training split"),
    "in_spec": ("as its input has", "model: channels and strides of the part before"),
}


class Origin(NamedTuple):
    """A value of a configuration.

    ``value``: as it is in the end. ``place``: where it is said. ``interpolation``: what stands there, where that points
    elsewhere; empty else.
    """

    key: str
    value: Any
    place: str
    interpolation: str = ""


class Said(NamedTuple):
    """What a file, a class or an argument says of one key, and where."""

    value: Any
    place: str


#: What one source says, by full key.
Layer = Mapping[str, Said]


def origins_of(composer: Composer, *overrides: str) -> tuple[list[Origin], Composed]:
    """A row for each value that ``overrides`` compose, for each default that no file says, and what comes at run time.

    Raises:
        ConfigError: it does not compose.
    """
    composed, parts = composer.with_parts(*overrides)
    raw: Any = OmegaConf.to_container(composed.cfg, resolve=False)
    with leaving_out(parts.idle):
        stacks = [(one.slot, _layers(composer.loader, one)) for one in parts.settled]
    found = [_origin(composed, key, value, stacks) for key, value in leaves(raw)]
    return sorted([*found, *_unsaid(raw)], key=_in_order_of(raw)), composed


def selected(origins: Sequence[Origin], prefixes: Iterable[str]) -> list[Origin]:
    """Those at or below one of ``prefixes``; all where there are none.

    Raises:
        ConfigError: nothing is there; each line has the nearest key.
    """
    wanted = list(prefixes)
    known = {".".join(parts[:n]) for o in origins for parts in [o.key.split(".")] for n in range(1, len(parts) + 1)}
    if wrong := [prefix for prefix in wanted if prefix not in known]:
        raise ConfigError([f"{prefix}: there is no such key{did_you_mean(prefix, known)}" for prefix in wrong])
    return [o for o in origins if not wanted or any(o.key == p or o.key.startswith(f"{p}.") for p in wanted)]


def origins_table(origins: Sequence[Origin]) -> Table:
    """A row for each, to be printed by rich."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("key", overflow="fold")
    shown.add_column("value", overflow="ellipsis", no_wrap=True, max_width=24)
    shown.add_column("from", overflow="fold")
    for key, value, place, interpolation in origins:
        shown.add_row(*map(escape, (key, _shown(value), f"{place} {interpolation}".rstrip())))
    return shown


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _origin(composed: Composed, key: str, value: Any, stacks: Sequence[tuple[str, Sequence[Layer]]]) -> Origin:
    """What was filled last counts, and in it what was said last; a "needed" is filled by what lies further out."""
    place = ""
    for slot, layers in reversed(stacks):
        said = next((layer[key] for layer in reversed(layers) if key in layer), None) if _within(key, slot) else None
        if said is not None and (said.value == value or not place):
            place = said.place
            if said.value == value:
                break
    is_pointer = isinstance(value, str) and "${" in value
    return Origin(key, _resolved(composed, key, value), place, value if is_pointer else "")


def _within(key: str, slot: str) -> bool:
    return not slot or key == slot or key.startswith(f"{slot}.")


def _resolved(composed: Composed, key: str, value: Any) -> Any:
    """``value`` with what it points to in its place, where that can be told before a run."""
    try:
        found = OmegaConf.select(composed.cfg, key, default=value)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except OmegaConfBaseException:
        return value


def _layers(loader: ConfigLoaderImpl, made: Settled) -> list[Layer]:
    """What each file and class says, in the order in which they are laid over each other, then the command line."""
    arguments = list(made.arguments)
    defaults = loader.compute_defaults_list(made.config_name, arguments, RunMode.RUN)
    repository = loader._parse_overrides_and_create_caching_repo(made.config_name, arguments)[1]
    chosen = _Choices(defaults, repository)
    files = [d for d in defaults.defaults if d.config_path and not _is_hydras(d)]
    found = [(d, repository.load_config(str(d.config_path))) for d in files]
    said = OverridesParser.create().parse_overrides(arguments)
    values = [o for o in said if not (o.is_delete() or _chooses(o, loader))]
    return [*(_layer(d, one, chosen) for d, one in found if one is not None), *(dict(_argument(o)) for o in values)]


def _is_hydras(default: ResultDefault) -> bool:
    return (default.package or "").partition(".")[0] == "hydra"


def _chooses(override: Override, loader: ConfigLoaderImpl) -> bool:
    is_group = loader.repository.group_exists(override.key_or_group)
    return override.key_or_group.startswith("hydra") or (is_group and not isinstance(override.value(), dict))


def _argument(override: Override) -> Iterator[tuple[str, Said]]:
    key = override.package or override.key_or_group.replace("/", ".")
    return ((name, Said(value, COMMAND_LINE)) for name, value in leaves(override.value(), key))


def _layer(default: ResultDefault, found: ConfigResult, chosen: Callable[[ResultDefault], str]) -> Layer:
    content: Any = OmegaConf.to_container(found.config, resolve=False) if OmegaConf.is_dict(found.config) else {}
    content.pop("defaults", None)
    place = _places(found, str(default.config_path), content, lambda: chosen(default))
    at = f"{default.package}." if default.package else ""
    return {f"{at}{key}": Said(value, place(key)) for key, value in leaves(content)}


def _places(
    found: ConfigResult, name: str, content: Mapping[str, Any], chosen: Callable[[], str]
) -> Callable[[str], str]:
    """Gives for each key of a file its line; of a class's own node the argument's, and of its name who chose it."""
    if found.path.startswith("file:"):
        file = _file(found, name)
        return lambda key: place_of_key(file, key)
    if not isinstance(content.get("_target_"), str):
        return lambda key: name
    cls = resolve(content["_target_"])
    by = f", by {chosen()}"
    return lambda key: place_of_argument(cls, key.partition(".")[0]) + (by if key == "_target_" else "")


def _file(found: ConfigResult, name: str) -> Path:
    return Path(found.path.removeprefix("file://")) / f"{name.removesuffix('.yaml')}.yaml"


class _Choices:
    """Tells who has put a part into its slot: a file and line, or the command line."""

    def __init__(self, defaults: DefaultsList, repository: IConfigRepository) -> None:
        self._overridden = defaults.overrides.override_metadata
        self._parents = {d.config_path: d.parent for d in defaults.defaults}
        self._repository = repository

    def __call__(self, default: ResultDefault) -> str:
        group, _, option = str(default.config_path).rpartition("/")
        package, parent = default.package or "", default.parent or ""
        while parent.rpartition("/")[0] == group and parent in self._parents:  # a preset of the same group
            option, parent = parent.rpartition("/")[2], self._parents[parent] or ""
        keys = (group, f"{group}@{package}")
        override = next((self._overridden[key] for key in keys if key in self._overridden), None)
        if override is not None:
            parent = override.containing_config_path or ""
        found = self._repository.load_config(parent) if parent and "_dummy" not in parent else None
        if found is None or not found.path.startswith("file:"):
            return COMMAND_LINE
        return place_of_choice(_file(found, parent), group, package, option)


def _unsaid(raw: Any, prefix: str = "") -> Iterator[Origin]:
    """What the classes in ``raw`` take beside what is said there: their own defaults, and what comes at run time."""
    if not isinstance(raw, Mapping):
        return
    if (cls := _class_of(raw)) is not None:
        late = runtime_arguments(cls)
        for name, parameter in parameters(cls).items():
            key = f"{prefix}{name}"
            if name in RUNTIME_ARGUMENTS:
                yield Origin(key, *_AT_RUN_TIME[name])
            elif name not in raw and name not in late and parameter.default is not parameter.empty:
                yield Origin(key, parameter.default, place_of_argument(cls, name))
    for name, node in raw.items():
        yield from _unsaid(node, f"{prefix}{name}.")


def _class_of(node: Mapping[str, Any]) -> type | None:
    target = node.get("_target_")
    try:
        return resolve(target) if isinstance(target, str) else None
    except ConfigError:  # a class that there is not, which the checker tells
        return None


def _in_order_of(raw: Any) -> Any:
    """A key for sorting: as ``raw`` has it, what it does not have behind its neighbours."""
    places = {key: i for i, (key, _) in enumerate(leaves(raw))}

    def place(origin: Origin) -> tuple[int, ...]:
        if origin.key in places:
            return places[origin.key], 0
        parent = origin.key.rpartition(".")[0]
        return max((i for key, i in places.items() if key.startswith(f"{parent}.")), default=-1), 1

    return place
