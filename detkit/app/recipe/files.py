"""Where a recipe is kept, what its file says of itself, and what a configuration is composed of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detkit.app.assemble.identity import leaves
from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.composer import Composer
from detkit.app.cli.paths import search_path
from detkit.app.recipe.given import Choice
from detkit.app.recipe.written import experiment
from detkit.config import ConfigError, validate
from detkit.utils.commands import command
from detkit.utils.files import atomic_write, output_folder

#: Keys of data, by their last names, whose folders are seen from where a command is called.
_FOLDERS = ("root", "folder")


@dataclass(frozen=True, slots=True)
class Place:
    """The experiment ``name`` in a ``folder`` of one's own configurations."""

    folder: Path
    name: str

    @property
    def file(self) -> Path:
        """The experiment."""
        return self.folder / "experiment" / f"{self.name}.yaml"

    @property
    def speeds(self) -> Path:
        """The timings beside it."""
        return self.folder / "experiment" / f"{self.name}.speed.json"

    @property
    def words(self) -> tuple[str, ...]:
        """What follows the tool to run it."""
        return "--config-dir", str(self.folder), f"experiment={self.name}"

    def write(self, headline: str, remarks: Sequence[str], choices: Sequence[Choice]) -> None:
        """Write the file, whole or not at all."""
        line = " ".join([command("train"), *map(shlex.quote, self.words)])
        with output_folder(self.file.parent):
            atomic_write(self.file, experiment(headline, line, remarks, choices))

    def compose(self) -> DictConfig:
        """The configuration of the training, checked.

        Raises:
            ConfigError: the file is not an experiment that can run.
        """
        cfg = Composer("train", str(self.folder))(f"experiment={self.name}").cfg
        validate(cfg, TrainSchema)
        return cfg


def name_of(name: str | None, root: str | None) -> str:
    """``name``, or that of the folder ``root`` of the data, in letters that a command line takes.

    Raises:
        ConfigError: neither is there, or the name is no name of a file.
    """
    if name is None:
        if root is None:
            raise ConfigError("name: needs a value, since the data have no data.root to be named after")
        return re.sub(r"\W+", "_", Path(root).absolute().name, flags=re.ASCII).strip("_") or "mine"
    if not re.fullmatch(r"\w[\w-]*", name, re.ASCII):
        raise ConfigError(f"name: must be letters, digits, _ and -, not {name!r}")
    return name


def data_choices(data: DictConfig, preset: str) -> list[Choice]:
    """What the command line says of ``data`` beside the ``preset``, with folders that hold from anywhere."""
    loader = ConfigLoaderImpl(search_path(None))
    before = dict(
        leaves(OmegaConf.to_container(loader.load_configuration("recipe", [f"data={preset}"], RunMode.RUN).data))
    )
    now = dict(leaves(OmegaConf.to_container(data)))
    said = {key: value for key, value in now.items() if key not in before or before[key] != value}
    if isinstance(now.get("root"), str):
        said = {"root": now["root"], **{k: v for k, v in said.items() if k != "root"}}
    said = {key: _from_anywhere(value) if key.rpartition(".")[2] in _FOLDERS else value for key, value in said.items()}
    return [Choice(f"data.{key}", value, "as it was given") for key, value in said.items()]


def _from_anywhere(folder: Any) -> Any:
    """``folder``, but where it is none, or another key says it."""
    return str(Path(folder).absolute()) if isinstance(folder, str) and "${" not in folder else folder


def with_said(choices: Sequence[Choice], said: Sequence[Choice]) -> list[Choice]:
    """``choices``, where what was ``said`` of a key takes the place of what the rules choose."""
    by_key: Mapping[str, Any] = {choice.key: choice for choice in said}
    known = {choice.key for choice in choices}
    return [by_key.get(c.key, c) for c in choices] + [c for c in said if c.key not in known]
