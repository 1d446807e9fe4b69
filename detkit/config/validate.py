"""The one checker: a whole configuration against the signatures of what it names, every mistake at once."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from detkit.config.registry import (
    RUNTIME_ARGUMENTS,
    ConfigError,
    Registry,
    did_you_mean,
    is_registered,
    known_names,
    parameters,
    resolve,
    runtime_arguments,
)

MISSING = "???"
SPECIAL = ("_target_", "_partial_")


def validate(cfg: Any, schema: type | None = None, also: Collection[str] = ()) -> None:
    """Check ``cfg`` (a DictConfig or plain dict) before anything is built.

    Args:
        cfg: the composed configuration.
        schema: a dataclass whose fields are the sections allowed at the root; without it ``cfg`` must be a component.
        also: keys that the caller has taken out of ``cfg``, for messages that name what is known.

    Raises:
        ConfigError: with one line for each mistake: unknown or missing key, wrong type, unknown component.
    """
    node = plain(cfg)
    errors = list(_check_call(node, schema, "", also) if schema else _check_value(node, Any, ""))
    if errors:
        raise ConfigError(_said_once(errors, cfg))


def _said_once(errors: list[str], cfg: Any) -> list[str]:
    """Without those about a value that another key gives (``${data.root}``), where that one is told of."""
    told = {line.partition(":")[0] for line in errors}
    raw: Any = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else {}
    return [line for line in errors if _given_by(line.partition(":")[0], raw) not in told]


def _given_by(key: str, raw: Any) -> str | None:
    """The key whose value stands at ``key``; None where it is a value of its own."""
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    found = re.fullmatch(r"\$\{([^${}:]+)\}", raw) if isinstance(raw, str) else None
    return found[1] if found else None


def plain(cfg: Any) -> Any:
    """``cfg`` as plain dicts and lists, interpolations resolved, missing values left as ``???``."""
    if not OmegaConf.is_config(cfg):
        return cfg
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        if isinstance(error, InterpolationToMissingValueError):
            wanted = str(error).partition("Missing mandatory value: ")[2].split()
            raise ConfigError(f"{wanted[0] if wanted else error.full_key}: needs a value") from error
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error


def convert(value: Any, annotation: Any) -> Any:
    """``value`` as YAML gave it, converted to ``annotation``: lists become tuples, whole numbers floats; no guessing.

    Raises:
        ValueError: it does not fit; the message says what would.
    """
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, (str, typing.TypeVar)):
        return value
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return value
    except PydanticUserError:  # dataclasses and models bring a config of their own
        try:
            adapter = TypeAdapter(annotation)
        except PydanticSchemaGenerationError:  # a section of components, which a mapping alone can be
            if isinstance(value, Mapping):
                return value
            raise ValueError(_what_fits(value, annotation)) from None
    try:
        # Strict JSON is the one mode that takes a list for a tuple and 1 for 1.0, but not "1" for 1.
        return adapter.validate_json(json.dumps(value), strict=True)
    except (ValidationError, PydanticUserError, TypeError):
        raise ValueError(_what_fits(value, annotation)) from None


def is_component(value: Any) -> bool:
    """Whether ``value`` is a node that names a class."""
    return isinstance(value, Mapping) and "_target_" in value


def holds_component(value: Any) -> bool:
    """Whether a component stands anywhere inside ``value``."""
    if isinstance(value, Mapping):
        return is_component(value) or any(holds_component(v) for v in value.values())
    return isinstance(value, (list, tuple)) and any(holds_component(v) for v in value)


def element_annotation(annotation: Any, index: int = 0) -> Any:
    """What ``annotation`` wants as its ``index``-th element: X of ``Sequence[X]``, ``Mapping[str, X]`` and the like."""
    for option in alternatives(annotation):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if not args or not isinstance(origin, type):
            continue
        if issubclass(origin, tuple):
            return args[0] if len(args) == 2 and args[1] is Ellipsis else args[min(index, len(args) - 1)]
        if issubclass(origin, collections.abc.Mapping):
            return args[1]
        if issubclass(origin, collections.abc.Iterable):
            return args[0]
    return Any


def names_freely(cfg: Mapping[str, Any] | DictConfig, schema: type, key: str) -> bool:
    """Whether what stands at ``key`` of ``cfg`` is a mapping whose names the configuration gives itself, like steps."""
    node, annotation = cfg, schema
    for part in filter(None, key.split(".")):
        target = node.get("_target_") if isinstance(node, Mapping | DictConfig) else None
        cls = resolve(target) if isinstance(target, str) else section_of(annotation)
        if cls is None:
            annotation = element_annotation(annotation)
        else:
            parameter = parameters(cls).get(part)
            annotation = Any if parameter is None or _is_third_party(cls) else parameter.annotation
        node = node.get(part) if isinstance(node, Mapping | DictConfig) else None
    if section_of(annotation) or (isinstance(node, Mapping | DictConfig) and "_target_" in node):
        return False
    origins = [typing.get_origin(option) for option in alternatives(annotation)]
    return any(isinstance(origin, type) and issubclass(origin, collections.abc.Mapping) for origin in origins)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def section_of(annotation: Any) -> type | None:
    """The dataclass that ``annotation`` asks for, as a section without ``_target_``."""
    return next((a for a in alternatives(annotation) if dataclasses.is_dataclass(a) and isinstance(a, type)), None)


def _check_call(node: Mapping[str, Any], cls: type, key: str, also: Collection[str] = ()) -> Iterator[str]:
    known = parameters(cls)
    late = runtime_arguments(cls)
    partial = node.get("_partial_", False)
    ours = not _is_third_party(cls)
    for name, value in node.items():
        if name in SPECIAL:
            continue
        here = f"{key}.{name}" if key else name
        if name in late and ours:
            yield f"{here}: arrives at run time from the data and the other parts, never from YAML"
        elif name in known:
            yield from _check_value(value, known[name].annotation if ours else Any, here)
        else:
            what = "argument" if "_target_" in node else "key"
            names = [*(n for n in known if n not in late), *also]
            yield f"{here}: no {what} {name!r}{_in_a_part(node, key, name) or did_you_mean(name, names)}"
    complete = not partial or late != RUNTIME_ARGUMENTS  # a factory of our own lacks only what arrives late
    for name, parameter in known.items():
        required = complete and parameter.default is parameter.empty and name not in late
        if required and name not in node:
            here = f"{key}.{name}" if key else name
            yield f"{here}: missing{_needed(parameter.annotation)}"


def _in_a_part(node: Mapping[str, Any], key: str, name: str) -> str:
    """Where one of the parts of ``node`` takes the argument ``name``."""
    for part, value in node.items():
        if (
            is_component(value)
            and value["_target_"] in known_names()
            and name in parameters(resolve(value["_target_"]))
        ):
            return f"; did you mean {key}.{part}.{name}?" if key else f"; did you mean {part}.{name}?"
    return ""


def _check_value(value: Any, annotation: Any, key: str) -> Iterator[str]:
    if value == MISSING:
        yield f"{key}: needs a value{_needed(annotation)}{_how_to_choose(annotation, key)}"
    elif is_component(value):
        yield from _check_component(value, annotation, key)
    elif isinstance(value, Mapping) and (section := section_of(annotation)):
        yield from _check_call(value, section, key)
    elif isinstance(value, Mapping) and (holds_component(value) or MISSING in value.values()):
        for name, item in value.items():
            yield from _check_value(item, element_annotation(annotation), f"{key}.{name}")
    elif isinstance(value, (list, tuple)) and (holds_component(value) or MISSING in value):
        for i, item in enumerate(value):
            yield from _check_value(item, element_annotation(annotation, i), f"{key}[{i}]")
    else:
        try:
            convert(value, annotation)
        except ValueError as error:
            yield f"{key}: {error}"


def _check_component(node: Mapping[str, Any], annotation: Any, key: str) -> Iterator[str]:
    if not isinstance(node["_target_"], str):
        yield f"{key}._target_: must be the name of a component, not {node['_target_']!r}"
        return
    if not isinstance(node.get("_partial_", False), bool):
        yield f"{key}._partial_: must be true or false, not {node['_partial_']!r}"
    try:
        cls = resolve(node["_target_"])
    except ConfigError as error:
        yield f"{key}._target_: {error}" if key else f"_target_: {error}"
        return
    if not _fits(cls, bool(node.get("_partial_", False)), annotation):
        yield f"{key}: {cls.__name__} does not fit here; it must be {_describe(annotation)}"
    yield from _check_call(node, cls, key)


def _fits(cls: type, partial: bool, annotation: Any) -> bool:
    for option in alternatives(annotation):
        origin = typing.get_origin(option) or option
        if option is Any or option is inspect.Parameter.empty or isinstance(option, (str, typing.TypeVar)):
            return True
        if origin is collections.abc.Callable and (partial or _is_callable(cls)):
            return True
        if not partial and isinstance(origin, type) and issubclass(cls, origin):
            return True
    return False


def _is_callable(cls: type) -> bool:
    return any("__call__" in base.__dict__ for base in cls.__mro__)


def _is_third_party(cls: type) -> bool:
    return not is_registered(cls) and not dataclasses.is_dataclass(cls)


def _needed(annotation: Any) -> str:
    words = _describe(annotation)
    return f" ({words})" if words else ""


def _how_to_choose(annotation: Any, key: str) -> str:
    """The override that puts a component there, where that is what is missing; none reaches into a list."""
    for option in () if "[" in key else alternatives(annotation):
        for registry in Registry.kinds().values() if _is_component_type(option) else ():
            if fitting := [name for name in registry if issubclass(registry[name], option)]:
                return f": +{registry.group}@{key}={'|'.join(fitting)}"
    return ""


def _what_fits(value: Any, annotation: Any) -> str:
    options = alternatives(annotation)
    literals = [v for o in options if typing.get_origin(o) is typing.Literal for v in typing.get_args(o)]
    hint = ""
    if literals and isinstance(value, str):
        names = [v for v in literals if isinstance(v, str)]
        hint = did_you_mean(value, names) if len(names) > 5 or "did you" in did_you_mean(value, names) else ""
    if isinstance(value, Mapping) and not is_component(value):
        hint = "; a component needs a '_target_'" if any(_is_component_type(o) for o in options) else ""
    if str in options and isinstance(value, (bool, int, float)):  # a folder that is called 2024
        text = json.dumps(value)
        hint = f'; as a text it has quotes, "{text}", which a shell takes away: \'"{text}"\''
    return f"must be {_describe(annotation)}, not {value!r}{hint}"


def _is_component_type(option: Any) -> bool:
    return isinstance(option, type) and option.__module__.partition(".")[0] not in ("builtins", "typing")


def _describe(annotation: Any) -> str:
    """``annotation`` in the words of a YAML author."""
    if annotation in (Any, inspect.Parameter.empty):
        return ""
    parts = []
    for option in alternatives(annotation):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if option is type(None):
            parts.append("null")
        elif origin is typing.Annotated:
            parts.append(f"{_describe(args[0])}{_bounds(args[1:])}")
        elif origin is typing.Literal:
            parts.append("one of " + ", ".join(repr(a) for a in args))
        elif origin is collections.abc.Callable:
            parts.append("a component with _partial_: true")
        elif isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
            parts.append(f"a mapping of {_describe(args[1])}")
        elif isinstance(origin, type) and issubclass(origin, tuple) and Ellipsis not in args:
            parts.append(f"a list of {len(args)}: " + ", ".join(_describe(a) for a in args))
        elif isinstance(origin, type) and args:
            parts.append(f"a list of {_describe(args[0])}")
        elif _is_component_type(option):
            parts.append(f"{'an' if option.__name__[0] in 'AEIOU' else 'a'} {option.__name__}")
        else:
            parts.append(getattr(option, "__name__", str(option)))
    return " or ".join(parts)


def _bounds(marks: tuple[Any, ...]) -> str:
    least, most = (next((getattr(m, name) for m in marks if hasattr(m, name)), None) for name in ("ge", "le"))
    if least is None:
        return ""
    return f" of {least} or more" if most is None else f" from {least} to {most}"
