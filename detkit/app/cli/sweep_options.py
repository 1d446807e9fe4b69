"""What configs/train.yaml says of sweeps, made known to Hydra: launcher and sweeper by name, and names of folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from detkit.app.assemble.identity import config_hash, is_free
from detkit.app.cli.overrides import normalize_overrides

#: Hydra runs plugins only under a name in ``hydra_plugins``; see :mod:`detkit.app.sweep.plugins`.
PLUGINS = "hydra_plugins.detkit"

_OPTIONS = (
    ("hydra/launcher", "processes", "ProcessLauncher", {"slots": 1}),
    ("hydra/sweeper", "checked", "CheckedSweeper", {"params": None}),
)


def register_sweep_options() -> None:
    """Make the two options of Hydra's groups, and the resolvers that name folders, known to Hydra and OmegaConf."""
    for group, name, plugin, options in _OPTIONS:
        ConfigStore.instance().store(name, {"_target_": f"{PLUGINS}.{plugin}", **options}, group=group)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("job_hash", lambda *, _root_: job_hash(_root_), replace=True)


def sweep_name(
    experiment: str | None, sweep: str | None, overrides: Sequence[str], params: Mapping[str, str] | None
) -> str:
    """The name of a sweep's folder: the same command finds the same folder again.

    What does not change any result (where runs are written, the device, ...) and the order on the command line do not
    enter.
    """
    said = [*normalize_overrides(overrides), *normalize_overrides([f"{k}={v}" for k, v in (params or {}).items()])]
    said = sorted({o for o in said if not is_free(o.lstrip("+~").partition("=")[0]) and not o.startswith("sweep=")})
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]
    return "_".join([part.replace("/", "-") for part in (experiment or "custom", sweep) if part] + [digest])


def job_hash(root: DictConfig) -> str:
    """The hash that names the folder of the job whose composed configuration, Hydra's part included, is ``root``."""
    cfg = OmegaConf.masked_copy(root, [str(key) for key in root if key != "hydra"])
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    return config_hash(content)
