"""Where something is said, for a reader: the line of a key in a YAML file, and of an argument in a class."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from detkit.app.cli.paths import config_dir


def shown_path(file: Path) -> str:
    """``file`` as configs/..., or from the current folder where it lies below it."""
    for root in (config_dir().parent, Path.cwd()):
        if file.is_relative_to(root):
            return os.path.relpath(file, root)
    return str(file)


def place_of_key(file: Path, key: str) -> str:
    """``configs/data/shapes.yaml:12`` for a dotted ``key`` in ``file``; the file alone where it is not there."""
    line = _lines(file).get(key)
    return shown_path(file) if line is None else f"{shown_path(file)}:{line}"


@functools.cache
def _lines(file: Path) -> dict[str, int]:
    """The line of each key, from 1."""
    node = yaml.compose(file.read_text(encoding="utf-8"))
    return {} if node is None else dict(_numbered(node))


def _numbered(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        yield from _numbered(value, f"{name}.")


def place_of_choice(file: Path, group: str, package: str, option: str) -> str:
    """Where the defaults list of ``file`` chooses ``option`` for a group that is mounted at ``package``."""
    for key, value, line in _choices(file):
        name, _, at = key.removeprefix("override ").removeprefix("optional ").lstrip("/").partition("@")
        is_there = not at or f".{package}".endswith(f".{at}")
        if value == option and f"/{group}".endswith(f"/{name}") and is_there:
            return f"{shown_path(file)}:{line}"
    return shown_path(file)


def _choices(file: Path) -> Iterator[tuple[str, str, int]]:
    """Key, option and line of each entry of a defaults list that has both."""
    root = yaml.compose(file.read_text(encoding="utf-8"))
    sections = root.value if isinstance(root, yaml.MappingNode) else ()
    for entry in next((node.value for key, node in sections if key.value == "defaults"), ()):
        for key, value in entry.value if isinstance(entry, yaml.MappingNode) else ():
            yield key.value, value.value, key.start_mark.line + 1


def place_of_argument(cls: type, name: str) -> str:
    """``detkit/models/necks/fpn.py:36 FPN``: where ``cls`` or what it inherits from has its argument ``name``.

    The first line of ``cls`` for what is no argument.
    """
    for owner in cls.__mro__:
        if (line := _arguments(owner).get(name)) is not None:
            return f"{_file(owner)}:{line} {cls.__name__}"
    return f"{_file(cls)}:{_parsed(cls)[1]} {cls.__name__}"


@functools.cache
def _arguments(cls: type) -> dict[str, int]:
    """The lines of the constructor's arguments, or of a dataclass's fields, in the code of ``cls`` itself."""
    found: dict[str, int] = {}
    for node in _parsed(cls)[0]:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, node.lineno)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found |= {argument.arg: argument.lineno for argument in (*node.args.args, *node.args.kwonlyargs)}
    return found


@functools.cache
def _parsed(cls: type) -> tuple[list[ast.stmt], int]:
    """What stands in the class, and the line at which it begins; nothing where there is no code of it."""
    try:
        lines, start = inspect.getsourcelines(cls)
    except (OSError, TypeError):  # made at run time, or of C
        return [], 1
    (node,) = ast.parse(textwrap.dedent("".join(lines))).body
    ast.increment_lineno(node, start - 1)
    return (node.body, node.lineno) if isinstance(node, ast.ClassDef) else ([], start)


def _file(cls: type) -> str:
    """detkit/models/necks/fpn.py, torch/optim/sgd.py: from the folder that holds the package."""
    try:
        file = Path(inspect.getsourcefile(cls) or cls.__module__)
    except TypeError:
        return cls.__module__
    package = cls.__module__.partition(".")[0]
    root = next((parent.parent for parent in file.parents if parent.name == package), None)
    return shown_path(file) if root is None else str(file.relative_to(root))
