"""``tools/show_config.py``: the configuration of a run, in what two runs differ, or where each value comes from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich
from omegaconf import OmegaConf
from rich.markup import escape
from rich.table import Table

from detkit.app.assemble.exported import is_exported, load_exported
from detkit.app.assemble.foreign import inert
from detkit.app.assemble.identity import is_free, leaves
from detkit.app.cli.composer import Composer
from detkit.app.cli.failure import told_plainly
from detkit.app.inspect.value_origins import origins_of, origins_table, selected
from detkit.app.run.folder import CONFIG, RunFolder
from detkit.app.run.manifest import counted
from detkit.config import ConfigError
from detkit.config.validate import plain
from detkit.engine.state.checkpoint import load_checkpoint
from detkit.engine.state.published import SUFFIX
from detkit.utils.commands import command

#: What a manifest says of one start alone, or what the configuration says better.
_OF_A_START = ("time", "torchrun", "resumed", "command")

#: Columns of what no terminal shows: rows that are searched for shall not be broken.
_UNSEEN_WIDTH = 200


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    given = parser.parse_intermixed_args(arguments)
    if not given.origin and given.config_dir is not None:
        parser.error("--config-dir goes with --origin alone")
    if not given.origin and (overrides := [word for word in given.what if not Path(word).exists() and "=" in word]):
        parser.error(f"{overrides[0]}: is no run; where each value of it comes from is told with --origin")
    if not given.origin and len(given.what) > 2:
        parser.error(f"one run is shown and two are compared; these are {len(given.what)}")
    with told_plainly():
        if given.origin:
            show_origins(given.what, given.config_dir)
        elif len(given.what) == 1:
            rich.print(escape(OmegaConf.to_yaml(OmegaConf.create(read_config(Path(given.what[0]))))))
        else:
            show_differences(*map(Path, given.what))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Show a run's configuration, in what two runs differ, or where each value comes from.",
        epilog=(
            f"examples: {command('show_config')} RUN_FOLDER OTHER_RUN_FOLDER; "
            f"{command('show_config')} experiment=quickstart optim.lr=0.01 --origin; "
            f"{command('show_config')} experiment=quickstart model.head optim --origin"
        ),
    )
    parser.add_argument(
        "what", nargs="+", metavar="RUN | OVERRIDE | KEY",
        help="one or two runs: folder, checkpoint or YAML; with --origin overrides as for train, and keys: "
        "model.head shows what is there and below",
    )  # fmt: skip
    parser.add_argument("--origin", action="store_true", help="of each value the file and line, class or argument")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own configurations, for --origin")
    return parser


def show_origins(words: Sequence[str], own_configs: str | None = None) -> None:
    """Print a row for each value of what the overrides among ``words`` compose; other words select keys.

    Raises:
        ConfigError: it does not compose, or there is no such key.
    """
    overrides = [word for word in words if "=" in word or word.startswith(("~", "+"))]
    keys = [word for word in words if word not in overrides]
    origins, composed = origins_of(Composer("train", own_configs), *overrides)
    for note in composed.notes:
        print(f"note: {note}", file=sys.stderr)
    console = rich.get_console()
    width = console.width if console.is_terminal else max(console.width, _UNSEEN_WIDTH)
    console.print(origins_table(selected(origins, keys)), width=width)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a run folder, a checkpoint or a YAML file, interpolations as they stand.

    Raises:
        ConfigError: there is none.
    """
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{path}: no run folder, checkpoint or configuration is there")
    if is_exported(file):
        return dict(load_exported(file)[0].config)
    if file.suffix.lower() in (".pt", ".pth", SUFFIX):
        return dict(load_checkpoint(file).config)
    loaded: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return loaded


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Key and both values wherever the two differ.

    Where a component is another class, its class alone is told and those of its arguments that both have.
    """
    flat = dict(leaves(one)), dict(leaves(other))
    keys = sorted(flat[0].keys() | flat[1].keys())
    found = [key for key in keys if flat[0].get(key, _ABSENT) != flat[1].get(key, _ABSENT)]
    swapped = [key.removesuffix("_target_") for key in found if key.endswith("._target_")]

    def is_of_one_class(key: str) -> bool:
        return any(key.startswith(name) for name in swapped) and not all(key in side for side in flat)

    return [(k, flat[0].get(k, _ABSENT), flat[1].get(k, _ABSENT)) for k in found if not is_of_one_class(k)]


def show_differences(one: Path, other: Path) -> None:
    """Print in what two runs differ: first what changes the result, then what does not, then their surroundings.

    Interpolations count by what they lead to; those that look outside the configuration, as they stand.
    """
    found = differences(*(plain(inert(read_config(path), str(path))) for path in (one, other)))
    console = rich.get_console()
    for free, title in ((False, "what is computed"), (True, "what changes no result")):
        rows = [row for row in found if is_free(row[0]) is free and not row[0].startswith("resume.")]
        if rows:
            console.print(_table(title, one, other, rows))
        elif not free:
            console.print("the same is computed")
    if surroundings := manifest_differences(one, other):
        console.print(_table("made with", one, other, surroundings))


def manifest_differences(one: Path, other: Path) -> list[tuple[str, Any, Any]]:
    """The same for the manifests of two run folders; empty where there are none."""
    found = [RunFolder(path).manifest() for path in (one, other)]
    return differences(*(_surroundings(manifest) for manifest in found if manifest)) if all(found) else []


def _surroundings(content: dict[str, Any]) -> dict[str, Any]:
    git = content.get("git")
    if git and isinstance(git.get("not_in_git"), list):  # as older runs have it, with every file of the checkout
        git["not_in_git"] = counted(git["not_in_git"])
    return {key: value for key, value in content.items() if key not in _OF_A_START}


def _table(title: str, one: Path, other: Path, rows: Sequence[tuple[str, Any, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("key", str(one), str(other)):
        table.add_column(escape(heading), overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


class _Absent:
    def __str__(self) -> str:
        return "-"


_ABSENT = _Absent()


if __name__ == "__main__":
    main()
