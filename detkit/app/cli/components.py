"""Import everything that registers itself, so that Hydra and the registry know it."""

from __future__ import annotations

import detkit.data
import detkit.engine
import detkit.evaluation
import detkit.losses
import detkit.matching
import detkit.models  # noqa: F401
from detkit.app.cli.spared import spare_hydra
from detkit.app.cli.sweep_options import register_sweep_options
from detkit.config import load_plugins


def load_components() -> None:
    """Make detkit's own classes and those of plugins known, and what configurations say of sweeps.

    Raises:
        ConfigError: a plugin cannot be imported.
    """
    spare_hydra()
    register_sweep_options()  # configs/train.yaml names them: every composition of it needs this
    load_plugins()
