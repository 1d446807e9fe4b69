"""Two things that Hydra makes in each composition for nothing, left out; what it composes stays the same.

Of 1.3's time for one of detkit's experiments they are two fifths, and a tool composes several times before it starts.
"""

from __future__ import annotations

import copy

from hydra._internal import defaults_list
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import InputDefault
from omegaconf import DictConfig

_choices_and_defaults = defaults_list._create_interpolation_map


def spare_hydra() -> None:
    """From now on Hydra composes without them; to call it again changes nothing."""
    defaults_list._create_interpolation_map = _for_interpolations
    CachingConfigRepository.__init__ = _with_the_one_store


def _for_interpolations(
    overrides: defaults_list.Overrides, defaults: list[InputDefault], self_added: bool
) -> DictConfig:
    """All choices made so far, which Hydra gathers for each file of a composition: only interpolations read them."""
    if any(default.is_interpolation() for default in defaults):
        return _choices_and_defaults(overrides, defaults, self_added)
    return DictConfig({})


def _with_the_one_store(self: CachingConfigRepository, delegate: IConfigRepository) -> None:
    """A copy of ``delegate``, whose sources may be changed, without one of the store of all registered classes."""
    store = ConfigStore.instance()
    self.delegate = copy.deepcopy(delegate, {id(store): store})
    self.cache = {}
