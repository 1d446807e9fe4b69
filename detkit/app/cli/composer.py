"""A configuration from Python: composed as on the command line, with nothing of Hydra left behind."""

from __future__ import annotations

from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from detkit.app.cli.components import load_components
from detkit.app.cli.idle import Idle, compose, leaving_out, told
from detkit.app.cli.in_vain import leave_unread_empty
from detkit.app.cli.overrides import normalize_overrides, parse, wrong_choices
from detkit.app.cli.paths import search_path
from detkit.app.cli.slots import Compositions, Settled, settle_slots
from detkit.config import ConfigError


class Composed(NamedTuple):
    """A configuration; a line for each thing that a swapped part has taken with it; the option chosen of each group."""

    cfg: DictConfig
    notes: list[str]
    choices: dict[str, Any]


class Parts(NamedTuple):
    """Of what a configuration is composed: the whole (slot ""), then each slot with a content of its own, in the order
    in which they were filled; and the choices of files that were left out."""

    settled: list[Settled]
    idle: list[Idle]


class Composer:
    """Composes configurations of one kind.

    Args:
        config_name: the root: "train", "predict", ...
        own_configs: a folder of the user's own configurations, which are found first.
        keep: do not compose the same twice, for many configurations of files that do not change between them.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, config_name: str = "train", own_configs: str | None = None, keep: bool = False) -> None:
        load_components()
        self.config_name = config_name
        self.loader = ConfigLoaderImpl(search_path(own_configs, key="own_configs"))
        self._kept = Compositions(self.loader) if keep else None

    def __call__(self, *overrides: str) -> Composed:
        """The configuration that ``overrides`` (``"model/neck=fpn"``, ``"optim.lr=0.1"``) give.

        Raises:
            ConfigError: with a line for each override that is none or does not fit.
        """
        return self.with_parts(*overrides)[0]

    def with_parts(self, *overrides: str) -> tuple[Composed, Parts]:
        """As calling it, and of what it is composed."""
        said = normalize_overrides(overrides, self.loader.repository.group_exists)
        if errors := list(wrong_choices(parse(said, self.loader.repository), self.loader.repository)):
            raise ConfigError(errors)
        cfg, idle = compose(self.loader, self.config_name, said)
        choices: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
        settled: list[Settled] = []
        with open_dict(cfg):
            del cfg["hydra"]
        with leaving_out(idle):
            known = Compositions(self.loader) if idle or self._kept is None else self._kept
            notes = settle_slots(cfg, said, self.config_name, known, settled)
        leave_unread_empty(cfg)
        composed = Composed(cfg, [told(one, said) for one in idle] + notes, choices)
        return composed, Parts([Settled("", self.config_name, tuple(said)), *settled], idle)

    def slots(self, *overrides: str) -> set[str]:
        """What can be chosen anew without a ``+``: ``model/neck``, ``loss@model.head.cls_loss``."""
        said = normalize_overrides(overrides, self.loader.repository.group_exists)
        return set(self.loader.compute_defaults_list(self.config_name, said, RunMode.RUN).overrides.known_choices)
