"""Where the configuration files are: in the checkout, or inside the installed package."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery

from detkit.config import ConfigError


def config_dir() -> Path:
    """The folder ``configs`` that belongs to this installation.

    Raises:
        FileNotFoundError: the installation has none.
    """
    package = Path(__file__).resolve().parents[2]
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / "train.yaml").is_file() or (folder / "model").is_dir():
            return folder
    raise FileNotFoundError(f"no configs beside or inside {package}; install detkit from its repository")


def search_path(own: str | None, root: str | None = None, key: str = "--config-dir") -> ConfigSearchPath:
    """Where configurations are looked for.

    Args:
        own: a folder of the user's own, which comes first.
        root: takes the place of :func:`config_dir`.
        key: how the user has named ``own``, for the message.

    Raises:
        ConfigError: there is no folder ``own``.
    """
    path = create_automatic_config_search_path(__file__, None, root or str(config_dir()))
    if own is not None:
        folder = os.path.abspath(own)
        if not os.path.isdir(folder):
            raise ConfigError(f"{key}: there is no folder {own}")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return path


def own_configs(sources: Iterable[Any]) -> str | None:
    """The folder of ``--config-dir`` among Hydra's sources of configurations, each with a provider and a path."""
    return next((source.path for source in sources if source.provider == "command-line"), None)
