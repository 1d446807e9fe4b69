"""Configurations of unknown origin, as checkpoints and bundles carry them: no environment, no writing, no crowd.

That they name registered classes and allowlisted modules alone is the registry's rule. What those may do beyond reading
is held back here: a resolver reads the environment, a data set makes pictures, a backbone fetches weights, a loader
starts as many processes as it is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detkit.app.assemble.parts import withhold_pretrained_weights
from detkit.config import ConfigError
from detkit.config.registry import default_node, resolve
from detkit.config.validate import is_component
from detkit.data.datasets.shapes import ShapesDataset, folder_of
from detkit.utils.log import logger

#: ``${data.root}``: the one kind of interpolation that reads nothing but the configuration itself.
_OF_A_KEY = re.compile(r"\$\{[^${}:]*\}")


def inert(config: Any, source: str) -> DictConfig:
    """``config`` with every interpolation that is no plain key (``${oc.env:HOME}``) as the text that stands there.

    Raises:
        ConfigError: it is no configuration; the message names ``source``.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{source}: its configuration is no mapping")
    try:
        made: Any = OmegaConf.create(_without_resolvers(config, ""))
        return made
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: its configuration cannot be read: {str(error).partition(chr(10))[0]}") from error


def _without_resolvers(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_resolvers(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_resolvers(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in _OF_A_KEY.sub("", value):
        return value
    logger.info("%s: %r is left as it stands: of a stored configuration only keys are looked up", key, value)
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", value)  # an odd number of them before ${ is a text


def restrain(config: dict[str, Any], own: DictConfig | None = None) -> None:
    """Change ``config`` so that building any part of it makes, fetches and starts no more than the user's own would.

    Args:
        config: checked, plain values.
        own: what the user's command line says, which may do as it likes.

    Raises:
        ConfigError: a data set would have to be made.
    """
    own = OmegaConf.create() if own is None else own
    for key, node in _components(config, ""):
        if OmegaConf.select(own, f"{key}._target_") is not None:  # the user has chosen the whole of it
            continue
        cls = resolve(node["_target_"])
        withhold_pretrained_weights(node, cls)
        if issubclass(cls, ShapesDataset) and not (folder := folder_of(node)).exists():
            raise ConfigError(
                f"{key}: {folder} is not there, and no pictures are made because a checkpoint says so; "
                "data.root says where they are, and data=shapes makes those of that preset"
            )
        asked = node.get("num_workers", 0)
        most = default_node(cls).get("num_workers", asked)
        if asked > most and OmegaConf.select(own, f"{key}.num_workers") is None:
            logger.info("%s.num_workers: %d, not the checkpoint's %d; the command line may say more", key, most, asked)
            node["num_workers"] = most


def _components(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and node of every component anywhere in ``value``."""
    if is_component(value):
        yield key, value
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _components(item, f"{key}.{name}" if key else str(name))
