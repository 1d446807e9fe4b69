"""Import everything that registers itself, so that Hydra and the registry know it."""

from __future__ import annotations

import detkit.data
import detkit.engine
import detkit.evaluation
import detkit.losses
import detkit.matching
import detkit.models  # noqa: F401
from detkit.app.sweep.options import register_sweeps
from detkit.config import load_plugins


def load_components() -> None:
    """Make detkit's own classes and those of plugins known, and how sweeps are run.

    Raises:
        ConfigError: a plugin cannot be imported.
    """
    register_sweeps()
    load_plugins()
