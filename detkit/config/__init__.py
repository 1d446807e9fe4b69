"""YAML in, objects out: the registry, the checker and the builder."""

from detkit.config.build import build
from detkit.config.kinds import (
    ANCHORS,
    ASSIGNERS,
    BACKBONES,
    CALLBACKS,
    CODERS,
    DATASETS,
    DETECTORS,
    EVALUATORS,
    HEADS,
    LOADERS,
    LOSSES,
    NECKS,
    OPTIMIZERS,
    PROPOSAL_HEADS,
    ROI_HEADS,
    SAMPLERS,
    SCHEDULES,
    TRAINERS,
    TRANSFORMS,
)
from detkit.config.registry import ConfigError, Registry, load_plugins
from detkit.config.validate import validate

__all__ = [
    "ANCHORS",
    "ASSIGNERS",
    "BACKBONES",
    "CALLBACKS",
    "CODERS",
    "DATASETS",
    "DETECTORS",
    "EVALUATORS",
    "HEADS",
    "LOADERS",
    "LOSSES",
    "NECKS",
    "OPTIMIZERS",
    "PROPOSAL_HEADS",
    "ROI_HEADS",
    "SAMPLERS",
    "SCHEDULES",
    "TRAINERS",
    "TRANSFORMS",
    "ConfigError",
    "Registry",
    "build",
    "load_plugins",
    "validate",
]
