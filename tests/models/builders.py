"""Models for tests, composed as a user's command line composes them."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir

import detkit.models
from detkit.app.paths import config_dir
from detkit.config import validate
from detkit.models import Detector, build_detector
from detkit.structures import Categories


def compose_model(name: str, overrides: Sequence[str] = ()):
    """The ``model`` section for ``model=name``."""
    assert detkit.models
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(overrides=[f"+model={name}", *overrides]).model


def build_model(name: str, categories: Categories, overrides: Sequence[str] = ()) -> Detector:
    """The detector for ``model=name``, validated part by part first."""
    cfg = compose_model(name, overrides)
    for part in cfg.values():
        validate(part)
    return build_detector(cfg, categories)
