"""What ``--help`` shows: how a tool is called, its own keys, what can be chosen, the experiments, and examples.

Hydra's own help prints the composed configuration, which without an experiment is one that nobody should run.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import IConfigRepository
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from detkit.app.cli.overrides import options_of
from detkit.app.cli.paths import config_dir
from detkit.utils.commands import command

#: What stands in a tool's file beside its own keys.
_NOT_KEYS = ("defaults", "hydra")

#: A line of such a file: indentation, key, value, comment.
_LINE = re.compile(r"( *)(\w+): *([^#]*?) *(?:# *(.*))?")

_FLAGS = {
    "--cfg job": "print the composed configuration, run nothing",
    "--config-dir DIR": "a folder of your own configurations, which come first",
    "-m": "a sweep: every combination of values with commas",
}


def usage(tool: str, repository: IConfigRepository) -> str:
    """The help of ``tool``, called as its file is: "train", "inspect_data"."""
    about = OmegaConf.load(config_dir() / f"{tool}.yaml").hydra.help
    needs_experiment = "base" in _defaults(tool)
    flags = {flag: words for flag, words in _FLAGS.items() if flag != "-m" or tool == "train"}
    parts = [
        about.header,
        f"usage: {command(tool)} [FLAG ...] [GROUP=OPTION ...] [KEY=VALUE ...]",
        _section("Examples:", about.footer.splitlines()),
        _section("Keys of its own (KEY=VALUE):", _in_columns(list(_own_keys(tool)))),
        _section("Groups (GROUP=OPTION):", list(_groups(tool, repository))),
    ]
    if needs_experiment:
        parts.append(_section("Experiments (experiment=NAME):", experiments(repository)))
    parts.append(_section("Flags:", _in_columns(list(flags.items()))))
    parts.append(f"{command('list_components')} NAME tells the options of a part, of FPN for one.")
    return "\n\n".join(part for part in parts if part)


def experiments(repository: IConfigRepository) -> list[str]:
    """A line for each experiment: how to choose it, and what it is."""
    names = options_of("experiment", repository)
    width = shutil.get_terminal_size((1000, 0)).columns
    lines = _in_columns([(f"experiment={name}", headline(name, repository)) for name in names])
    return [line if len(line) + 2 <= width else f"{line[: max(0, width - 6)].rstrip()} ..." for line in lines]


def headline(name: str, repository: IConfigRepository) -> str:
    """The first comment in the file of an experiment that says something."""
    for source in repository.get_sources():
        file = Path(source.path) / "experiment" / f"{name}.yaml"
        if source.scheme() == "file" and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            comments = (line.lstrip("# ") for line in lines if line.startswith("#"))
            return next((line for line in comments if not line.startswith("@package")), "")
    return ""


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)]) if lines else ""


def _in_columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(left) for left, _ in rows), default=0)
    return [f"{left:<{width}}  {right}".rstrip() for left, right in rows]


def _own_keys(tool: str) -> Iterator[tuple[str, str]]:
    """``key=default`` and what the file says of it, of the tool and of what it shares with others."""
    for file in (["base"] if "base" in _defaults(tool) else []) + [tool]:
        above, remark = "", ""
        for line in (config_dir() / f"{file}.yaml").read_text(encoding="utf-8").splitlines():
            if (found := _LINE.fullmatch(line)) is None:
                continue
            indent, key, value, words = found.groups(default="")
            if not indent:
                above, remark = key, ""
            if above in _NOT_KEYS or len(indent) > 2 or value.startswith("{"):
                continue
            if not value:  # a section, whose keys come
                remark = words
                continue
            name = f"{above}.{key}" if indent else key
            yield f"{name}={'...' if value == '???' else value}", words or remark
            remark = ""


def _groups(tool: str, repository: IConfigRepository) -> Iterator[str]:
    """Each group with its options, in lines of the terminal's width."""
    named = _defaults(tool)
    width = shutil.get_terminal_size((120, 0)).columns - 2
    for group in _all_groups("", repository):
        outer = group.partition("/")[0]
        is_served = outer in named or ("base" in named and outer != "tta")
        if not is_served or outer in ("hydra", "experiment") or not (options := options_of(group, repository)):
            continue
        slot = "" if "/" in group or outer in named or "base" not in named else "@SLOT"
        text = f"{group}{slot}: {', '.join(options)}"
        yield from textwrap.wrap(text, max(width, 40), subsequent_indent="    ", break_on_hyphens=False)


def _all_groups(parent: str, repository: IConfigRepository) -> Iterator[str]:
    for name in repository.get_group_options(parent, ObjectType.GROUP):
        path = f"{parent}/{name}" if parent else name
        yield path
        yield from _all_groups(path, repository)


def _defaults(tool: str) -> set[str]:
    """The groups and files in the defaults list of ``tool``, and in that of the base."""
    listed: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{tool}.yaml").defaults)
    found = {str(name) for line in listed for name in (line if isinstance(line, dict) else [line])}
    found = {name.removeprefix("optional ").partition("/")[0] for name in found if not name.startswith("override ")}
    return found | (_defaults("base") if "base" in found else set())
