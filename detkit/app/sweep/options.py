"""The sweeper and the launcher as options of Hydra's, and the resolvers that name a sweep's folders."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

_MODULE = "hydra_plugins.detkit_sweeps"


def register_sweeps() -> None:
    """Make them known; ``configs/train.yaml`` names them, so every composition of it needs this."""
    store = ConfigStore.instance()
    store.store("processes", {"_target_": f"{_MODULE}.ProcessLauncher", "slots": 1}, group="hydra/launcher")
    store.store("checked", {"_target_": f"{_MODULE}.CheckedSweeper", "params": None}, group="hydra/sweeper")
    OmegaConf.register_new_resolver("sweep_name", _sweep_name, replace=True)
    OmegaConf.register_new_resolver("job_hash", _job_hash, replace=True)


def _sweep_name(*arguments: Any) -> str:
    from detkit.app.sweep.plan import sweep_name  # knows the command line, which knows this file

    return sweep_name(*arguments)


def _job_hash(*, _root_: DictConfig) -> str:
    from detkit.app.sweep.plan import job_hash

    return job_hash(_root_)
