"""The index of components: a registered class is a Hydra option whose schema is its constructor's signature.

The registry builds nothing; :mod:`detkit.config.build` does. A ``_target_`` is either the bare name of a registered
class (``_target_: FPN``) or the dotted path of a class in one of the allowlisted third-party modules.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore

T = TypeVar("T", bound=type)

#: Third-party modules whose classes a config may name. A class counts by where it is defined, not by where it is found:
#: ``torch.nn.modules.module.os`` is not a way out.
ALLOWED_MODULES = ("albumentations", "torch.optim", "torch.nn.modules")

#: Arguments that arrive at run time. They never stand in YAML: shapes flow from part to part, K and the number of each
#: class's objects from the data set.
RUNTIME_ARGUMENTS = ("in_spec", "num_classes", "class_counts")

#: The variable that names modules with components of one's own.
_PLUGINS = "DETKIT_PLUGINS"


class ConfigError(ValueError):
    """A configuration that cannot be built. ``errors`` holds one line for each mistake, each with its full key."""

    def __init__(self, errors: str | Iterable[str]) -> None:
        self.errors = (errors,) if isinstance(errors, str) else tuple(errors)
        head = "" if len(self.errors) == 1 else f"{len(self.errors)} mistakes in the configuration:\n  "
        super().__init__(head + "\n  ".join(self.errors))


_BY_NAME: dict[str, tuple[type, Registry]] = {}
_KINDS: dict[str, Registry] = {}


class Registry:
    """Name -> class for one kind of component. Use it as a decorator: ``@NECKS``.

    Args:
        kind: what the classes are, in words, for messages and listings.
        group: the Hydra group in which each class appears as an option under its own name.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._classes: dict[str, type] = {}
        _KINDS[kind] = self

    def __call__(self, cls: T) -> T:
        """Register ``cls``: check its contract, publish its defaults, keep its name.

        Raises:
            TypeError: the class breaks the contract, or another one has its name.
        """
        _check_contract(cls)
        other = _BY_NAME.get(cls.__name__)
        if other is not None and other[0].__module__ != cls.__module__:
            raise TypeError(f"{cls.__module__}.{cls.__name__}: {other[0].__module__} has registered that name already")
        _BY_NAME[cls.__name__] = (cls, self)
        self._classes[cls.__name__] = cls
        ConfigStore.instance().store(name=cls.__name__, node=default_node(cls), group=self.group)
        return cls

    def __iter__(self) -> typing.Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __getitem__(self, name: str) -> type:
        return self._classes[name]

    @staticmethod
    def kinds() -> Mapping[str, Registry]:
        """All registries by kind."""
        return dict(_KINDS)


def default_node(cls: type) -> dict[str, Any]:
    """The open Hydra node of ``cls``: its name, its defaults, and ``???`` where a value is needed."""
    node: dict[str, Any] = {"_target_": cls.__name__}
    late = runtime_arguments(cls)
    if late != RUNTIME_ARGUMENTS:
        node["_partial_"] = True
    for name, parameter in parameters(cls).items():
        if name not in late:
            node[name] = "???" if parameter.default is parameter.empty else _plain(parameter.default)
    return node


def runtime_arguments(cls: type) -> tuple[str, ...]:
    """The arguments of ``cls`` that arrive at run time and never stand in YAML.

    Beside the shapes these are what the class itself lists as ``runtime_arguments`` (a trainer's detector, loaders and
    folder); such a class is built as a factory, ``_partial_: true``, that the application calls with them.
    """
    return RUNTIME_ARGUMENTS + tuple(getattr(cls, "runtime_arguments", ()))


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters, annotations resolved, without ``self``, ``*args`` and ``**kwargs``."""
    init = cls.__init__
    if init is object.__init__:
        return {}
    try:
        hints = typing.get_type_hints(init, include_extras=True)  # with the bounds of numbers
    except Exception:  # third-party annotations that only exist under TYPE_CHECKING
        hints = {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = [p for p in inspect.signature(init).parameters.values() if p.kind not in variadic][1:]
    return {p.name: p.replace(annotation=hints.get(p.name, p.annotation)) for p in found}


def resolve(target: str) -> type:
    """The class that ``_target_: target`` means.

    Raises:
        ConfigError: it is neither registered nor a class of an allowlisted module.
    """
    if target in _BY_NAME:
        return _BY_NAME[target][0]
    if "." not in target:
        own = f"a class of your own is found by {_PLUGINS}=module"
        raise ConfigError(f"no component is called {target!r} ({own}){did_you_mean(target, _BY_NAME)}")
    if not _is_allowed(target):
        raise ConfigError(
            f"{target!r} is not allowed: a config may name registered components and classes of "
            f"{', '.join(ALLOWED_MODULES)}"
        )
    found = _locate(target)
    if not isinstance(found, type):
        raise ConfigError(f"{target!r} is not a class")
    if not _is_allowed(f"{found.__module__}.{found.__qualname__}"):
        raise ConfigError(f"{target!r} is not allowed: it is really {found.__module__}.{found.__qualname__}")
    return found


def known_names() -> Iterable[str]:
    """The names of all registered components."""
    return _BY_NAME


def is_registered(cls: type) -> bool:
    """Whether ``cls`` itself is a registered component."""
    return _BY_NAME.get(cls.__name__, (None,))[0] is cls


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known name, or the list of them when there are few and none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # difflib weighs case; people do not
        lower = {k.lower(): k for k in known}
        near = [lower[m] for m in difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)]
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 20 else ""


def load_plugins() -> None:
    """Import outside components: the entry points ``detkit.plugins`` and the modules named in DETKIT_PLUGINS.

    Raises:
        ConfigError: a plugin cannot be imported; the message names it.
    """
    names = [entry.value for entry in entry_points(group="detkit.plugins")]
    names += [name.strip() for name in os.environ.get(_PLUGINS, "").split(",") if name.strip()]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ConfigError(f"plugin {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _is_allowed(path: str) -> bool:
    return any(path.startswith(module + ".") for module in ALLOWED_MODULES)


def _locate(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{path!r} cannot be imported: {error}") from error
    if not hasattr(module, name):
        raise ConfigError(f"module {module_name!r} has no {name!r}{did_you_mean(name, dir(module))}")
    return getattr(module, name)


def _check_contract(cls: type) -> None:
    where = f"{cls.__module__}.{cls.__name__}"
    if not (cls.__doc__ or "").strip():
        raise TypeError(f"{where} needs a docstring: it is what list_components shows")
    if cls.__init__ is object.__init__:
        return
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"{where}.__init__: {parameter.name!r} must be keyword-only, without * or **")
        if parameter.annotation is inspect.Parameter.empty:
            raise TypeError(f"{where}.__init__: {parameter.name!r} needs an annotation: it is the config's schema")


def _plain(value: Any) -> Any:
    """A default as YAML can hold it."""
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"default {value!r} cannot stand in YAML; give None or a plain value")
