"""JSON and YAML files of a run, read with the types that their readers count on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from detkit.config import ConfigError

#: Kinds of values, by what a message calls them.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "a whole number": int,
    "a number": (int, float),
    "text": str,
    "a list": list,
    "an object": dict,
}


def read_json(path: Path, kinds: Mapping[str, str]) -> dict[str, Any] | None:
    """The object in the JSON file ``path``; None where there is no such file.

    Args:
        kinds: of the values under these names, where they are there and not null.

    Raises:
        ConfigError: the file holds something else, or a value is of another kind; the message names both.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # also bytes that are not UTF-8
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object but {_shown(content)}")
    check_kinds(path, content, kinds)
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file ``path``.

    Raises:
        ConfigError: the file holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a mapping of keys but {_shown(content)}")
    return content


def check_kinds(path: Path, content: Mapping[str, Any], kinds: Mapping[str, str], where: str = "") -> None:
    """Compare values of ``content`` with the ``kinds`` that they must be of; what is missing or null may be.

    Args:
        where: in the file ``path`` it stands: "metrics." or nothing.

    Raises:
        ConfigError: a value is of another kind.
    """
    for name, kind in kinds.items():
        value = content.get(name)
        if value is not None and (not isinstance(value, _KINDS[kind]) or isinstance(value, bool)):
            raise ConfigError(f"{path}: {where}{name} is not {kind} but {_shown(value)}")


def _shown(value: Any) -> str:
    return repr(str(value)[:40])
