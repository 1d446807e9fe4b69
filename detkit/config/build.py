"""Turn a checked configuration into objects: children first, each value converted to its annotation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from detkit.config.registry import RUNTIME_ARGUMENTS, ConfigError, parameters, resolve
from detkit.config.validate import (
    SPECIAL,
    convert,
    element_annotation,
    is_component,
    plain,
    section_of,
)


def build(cfg: Any, *, key: str = "", **runtime: Any) -> Any:
    """Build the component that ``cfg`` describes.

    ``hydra.utils.instantiate`` is not used: with run-time arguments it builds the children without them and hands lists
    to tuple parameters.

    Args:
        cfg: a node with ``_target_``; ``_partial_: true`` yields a factory, for what is made many times or needs
            objects that exist only at run time.
        key: where ``cfg`` stands in the whole configuration, for messages.
        runtime: ``in_spec``, ``num_classes`` and ``class_counts``, given to every constructor at any depth whose
            signature names them.

    Raises:
        ConfigError: an unknown component, or a constructor that refuses its values; the message has the full key.
    """
    unknown = set(runtime) - set(RUNTIME_ARGUMENTS)
    if unknown:
        raise TypeError(f"build takes {', '.join(RUNTIME_ARGUMENTS)} at run time, not {', '.join(sorted(unknown))}")
    return _build(plain(cfg), Any, runtime, key)


def _build(value: Any, annotation: Any, runtime: Mapping[str, Any], key: str) -> Any:
    if is_component(value):
        return _construct(resolve(value["_target_"]), value, runtime, key)
    if isinstance(value, Mapping):
        if section := section_of(annotation):
            return _construct(section, value, runtime, key)
        item = element_annotation(annotation)
        return {name: _build(v, item, runtime, _join(key, name)) for name, v in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list, tuple)) for v in value):
        items = [_build(v, element_annotation(annotation, i), runtime, f"{key}[{i}]") for i, v in enumerate(value)]
        return tuple(items)
    try:
        return convert(value, annotation)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def _construct(cls: type, node: Mapping[str, Any], runtime: Mapping[str, Any], key: str) -> Any:
    known = parameters(cls)
    try:
        of_parts = _runtime_of_parts(cls, node, runtime)
    except ValueError as error:
        raise ConfigError(f"{key}: {cls.__name__}: {error}") from error
    arguments = {
        name: _build(
            value, known[name].annotation if name in known else Any, of_parts.get(name, runtime), _join(key, name)
        )
        for name, value in node.items()
        if name not in SPECIAL
    }
    arguments |= {name: value for name, value in runtime.items() if name in known}
    if node.get("_partial_", False):
        factory = _Factory(cls, **arguments)
        factory.name = f"{key}: {cls.__name__}" if key else cls.__name__
        return factory
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ConfigError(f"{key}: {cls.__name__}: {error}" if key else f"{cls.__name__}: {error}") from error


def _runtime_of_parts(cls: type, node: Mapping[str, Any], runtime: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What arrives at run time in those parts of ``cls`` that are given other maps than ``cls`` itself.

    A class says so by ``part_specs(in_spec, options)``: the spec of the maps of each such part.
    """
    if not hasattr(cls, "part_specs") or "in_spec" not in runtime:
        return {}
    specs: Mapping[str, Any] = cls.part_specs(runtime["in_spec"], node)  # pyright: ignore[reportAttributeAccessIssue]
    return {name: {**runtime, "in_spec": spec} for name, spec in specs.items()}


class _Factory(functools.partial):
    """A constructor with some of its values; one that refuses them is named by the key that they stand at."""

    name: str

    def __call__(self, /, *args: Any, **runtime: Any) -> Any:
        try:
            return super().__call__(*args, **runtime)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{self.name}: {error}") from error


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
