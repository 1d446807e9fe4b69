"""Keys to leave out that are not there."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from detkit.app.assemble.schema import TrainSchema
from detkit.config import ConfigError
from detkit.config.registry import did_you_mean
from detkit.config.validate import names_freely


def nothing_there(base: DictConfig, key: str, deleted: bool = False) -> str | None:
    """Why ``key`` cannot be left out of ``base``; None where it can.

    Of keys set to null only names that a configuration gives itself (steps, callbacks) are looked at: arguments and
    sections are known to the checker, and have defaults that null replaces.
    """
    parent, _, name = key.rpartition(".")
    try:
        if not deleted and not names_freely(base, TrainSchema, parent):
            return None
    except ConfigError:  # a component that there is not, which the checker tells with its key
        return None
    node: Any = OmegaConf.select(base, parent) if parent else base
    known = list(map(str, node.keys())) if isinstance(node, DictConfig) else []
    if name in known:
        return None
    return f"{key}: there is no {name!r} to leave out{did_you_mean(name, known)}"
