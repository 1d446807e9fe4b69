"""``tools/list_components.py``: what can be plugged where."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
from collections.abc import Sequence
from typing import Any, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detkit.app.cli.components import load_components
from detkit.app.cli.composer import Composer
from detkit.app.cli.failure import told_plainly
from detkit.app.cli.overrides import options_of
from detkit.app.cli.paths import config_dir
from detkit.app.inspect.pairs import choices, pair_table, try_pair
from detkit.config import ConfigError, Registry
from detkit.config.registry import RUNTIME_ARGUMENTS, did_you_mean, parameters, runtime_arguments
from detkit.utils.commands import command
from detkit.utils.log import set_up_logging
from detkit.utils.progress import track

#: Groups that fill a section of their own; others are mounted in slots, as in ``loss@model.head.roi.cls_loss=Focal``.
_SECTIONS = ("optim", "schedule", "trainer", "evaluator")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="List what a configuration can name, and the options of each.")
    parser.add_argument("name", nargs="?", help="a kind (backbone, neck, loss, ...) or a component (FPN): its options")
    parser.add_argument(
        "--pairs", nargs="*", metavar="EXPERIMENT", help="try every choice on these experiments; without a name on all"
    )
    given = parser.parse_args(arguments)
    with told_plainly():
        load_components()
        if given.pairs is None:
            _list(parser, given.name)
        else:
            _list_pairs(given.pairs)


def _list_pairs(wanted: Sequence[str]) -> None:
    console, composer = Console(), Composer(keep=True)
    known = options_of("experiment", composer.loader.repository)
    if wrong := [name for name in wanted if name not in known]:
        raise ConfigError([f"--pairs: no experiment {name!r}{did_you_mean(name, known)}" for name in wrong])
    set_up_logging(level=logging.ERROR)
    for experiment in wanted or known:
        offered = choices(composer, experiment)
        tried = track((try_pair(composer, experiment, choice) for choice in offered), len(offered), experiment)
        pairs = list(tried)
        console.print(pair_table(experiment, pairs))
        for pair in pairs:
            if pair.refused is not None:
                console.print(Text(f"{pair.choice}: {pair.refused}"), soft_wrap=True)


def _list(parser: argparse.ArgumentParser, name: str | None) -> None:
    console = Console()
    kinds = Registry.kinds()
    if name is None:
        console.print(overview(kinds.values()))
        console.print("A slot is a key of the configuration: loss@model.head.roi.cls_loss=Focal")
        console.print(f"What goes with an experiment: {command('list_components')} --pairs quickstart")
        console.print(f"The options of one: {command('list_components')} NAME")
    elif name in kinds:
        for component in kinds[name]:
            show(console, kinds[name][component], kinds[name])
    elif found := next((r for r in kinds.values() if name in r), None):
        show(console, found[name], found)
    else:
        known = [*kinds, *(c for r in kinds.values() for c in r)]
        parser.error(f"no kind or component {name!r}{did_you_mean(name, known)}; without a name all are listed")


def overview(registries) -> Table:
    """Every kind with the way to choose one, its classes, and the presets built on them; as wide as the terminal."""
    table = Table(title="components (capital: a class with its own defaults; lower case: a preset)", show_lines=True)
    table.add_column("kind, on the command line", no_wrap=True)
    table.add_column("classes and presets", overflow="fold")
    for registry in registries:
        classes = [name for name in registry if not registry[name].__module__.startswith("tests.")]
        presets = sorted(p.stem for p in (config_dir() / registry.group).glob("*.yaml"))
        if classes or presets:
            named = "\n".join(", ".join(names) for names in (classes, presets) if names)
            table.add_row(f"{registry.kind}\n{_usage(registry)}", named)
    return table


def _usage(registry: Registry) -> str:
    """How to choose one: by its group, or, for parts that fit in several places, by group and slot."""
    is_section = registry.group.startswith(("model", "tta")) or registry.group in _SECTIONS
    return f"{registry.group}=NAME" if is_section else f"{registry.group}@SLOT=NAME"


def show(console: Console, cls: type, registry: Registry) -> None:
    """Print the options of one class, then its docstring."""
    console.print(options(cls, registry))
    console.print(Text(inspect.cleandoc(cls.__doc__ or "") + "\n"))


def options(cls: type, registry: Registry) -> Table:
    """The arguments of one class: type and default."""
    table = Table(title=f"{cls.__name__} ({registry.kind}): {_usage(registry)}", title_justify="left")
    for heading in ("option", "type", "default"):
        table.add_column(heading, overflow="fold")
    late = runtime_arguments(cls)
    for name, parameter in parameters(cls).items():
        if name in late:
            continue
        kind = _type_name(parameter.annotation)
        default = "needed" if parameter.default is parameter.empty else repr(parameter.default)
        table.add_row(name, Text(kind), Text(default))
    shapes = [name for name in RUNTIME_ARGUMENTS if name in parameters(cls)]
    if shapes:
        table.add_row(", ".join(shapes), "", "derived")
    return table


def _type_name(annotation: Any) -> str:
    """``annotation`` as it stands in the code, without the bounds of numbers."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return re.sub(r"Annotated\[(\w+),[^\]]*\]", r"\1", str(annotation).replace("typing.", ""))


if __name__ == "__main__":
    main()
