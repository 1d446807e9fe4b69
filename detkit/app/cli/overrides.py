"""The command line before Hydra reads it: written as Hydra wants it, and mistakes told with the nearest right name.

Hydra stops at its first mistake, names neither the argument nor what stands near it, and advises ``+``, which makes the
mistake compose.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Sweep, ValueType
from hydra.errors import HydraException

from detkit.app.cli.paths import config_dir
from detkit.config import ConfigError
from detkit.config.registry import did_you_mean

#: What a word processor makes of quotes: a shell takes them for letters.
_TYPOGRAPHIC = "“”„‘’‚«»"  # noqa: RUF001

#: Values that begin so are meant for Hydra: quoted texts, lists and mappings.
_STRUCTURED = ("[", "{", "'", '"', *_TYPOGRAPHIC)


def normalize_overrides(
    arguments: Sequence[str], is_group: Callable[[str], bool] | None = None, *, sweep: bool = False
) -> list[str]:
    """The command line with value overrides as ``++key=value``; groups, flags and Hydra's own keys as they are.

    ``resume=X`` is short for ``resume.path=X``; ``group=null`` leaves the group out, and a group's option may have the
    suffix of its file. A value that Hydra could not read is taken for the text that it is (a path with ``=``, commas,
    letters beyond ASCII), unless it looks like a list or, under ``sweep``, could be several.

    Args:
        is_group: which keys are groups; by default those of the installation.
        sweep: commas separate values.
    """
    is_group = is_group or _repository().group_exists
    return [_normalize(argument, is_group, sweep) for argument in arguments]


def _normalize(argument: str, is_group: Callable[[str], bool], sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key or key.startswith("-"):
        return argument
    prefix, name, package = _parts(key)
    group = bool(name) and is_group(name) and not value.startswith("{")  # a mapping goes into what is chosen
    if group:
        value = re.sub(r"\.ya?ml(?=,|$)", "", value)
        if re.fullmatch(r"[+-]?[\d._]+([eE][+-]?\d+)?|true|false", value):
            value = quote(value)  # the name of a file, which Hydra would read as a number
    elif value.startswith("~/"):
        value = os.path.expanduser(value)  # the shell expands it at the beginning of a word alone
    value = _readable(value, sweep)
    if group and value == "null" and not prefix:
        return f"~{key}"  # Hydra takes no null for a group
    is_plain = not (prefix or group or package or "/" in key or name.partition(".")[0] == "hydra")
    if is_plain:
        key = f"++{'resume.path' if key == 'resume' else key}"
    return f"{key}={value}"


def _parts(key: str) -> tuple[str, str, str]:
    """The ``+``, ``++`` or ``~`` of ``key``, its group or path, and the package that follows an ``@``."""
    bare = key.lstrip("+~")
    name, _, package = bare.partition("@")
    return key.removesuffix(bare), name, package


def _readable(value: str, sweep: bool) -> str:
    """``value``, in quotes where Hydra could not read it and it can only be a text."""
    could_be_more = value.startswith(_STRUCTURED) or "${" in value or (sweep and "," in value)
    return value if could_be_more or _parses(f"key={value}") else quote(value)


def _parses(argument: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(argument))
    except HydraException:
        return False


def quote(value: str) -> str:
    """``value`` as a text in Hydra's grammar, whatever it holds."""
    mark = "'" if '"' in value and "'" not in value else '"'
    value = re.sub(rf"(\\*)({mark}|$)", lambda m: 2 * m[1] + (f"\\{mark}" if m[2] else ""), value)
    return mark + value.replace("${", "\\${") + mark


def for_shell(key: str, value: str) -> str:
    """The argument that gives ``key`` the text ``value``, as a user would type it."""
    return shlex.quote(f"{key.lstrip('+')}={quote(value)}")


def parse(arguments: Sequence[str], repository: IConfigRepository, *, sweep: bool = False) -> list[Override]:
    """The overrides that ``arguments``, normalised, are.

    Raises:
        ConfigError: with one line for each that is none, and how it could be written.
    """
    parsed, errors = [], []
    for i, argument in enumerate(arguments):
        try:
            override = OverridesParser.create().parse_overrides([argument])[0]
            key, equals, value = argument.partition("=")
            if not _parts(key)[1]:
                raise HydraException("no key")
            if equals and not value and not override.is_delete():
                raise ConfigError(f"{_shown(key)}: there is no value after the =; null is none, \"''\" an empty text")
            if override.is_sweep_override() and not sweep:
                raise ConfigError(_needs_m(override, argument))
            parsed.append(override)
        except ConfigError as error:
            errors += error.errors
        except HydraException as error:
            errors.append(_unread(i, arguments, error, repository, sweep))
    if errors:
        raise ConfigError(dict.fromkeys(errors))
    return parsed


def _needs_m(override: Override, argument: str) -> str:
    key, _, value = argument.partition("=")
    if override.value_type is not ValueType.SIMPLE_CHOICE_SWEEP:
        return f"{_shown(key)}: {value} is a sweep, which needs -m"
    as_list = shlex.quote(f"{_shown(key)}=[{value}]")
    text = for_shell(_shown(key), value)
    return f"{_shown(key)}: {value} is several values: as a list {as_list}, as one text {text}, as a sweep with -m"


def _unread(i: int, arguments: Sequence[str], error: Exception, repository: IConfigRepository, sweep: bool) -> str:
    """What is wrong with argument ``i``, which Hydra cannot read."""
    argument = arguments[i]
    key, equals, value = argument.partition("=")
    key = _shown(key)
    if not key or (not equals and _touches_equals(i, arguments)):
        return f"{argument!r}: an argument is key=value, without spaces round the ="
    if not equals:
        return f"{argument!r}: an argument is key=value{_what_was_meant(i, arguments, repository)}"
    if not _parses(f"{key.lstrip('~')}=0"):
        allowed = "letters of ASCII, digits, _ and -, joined by dots (x.0 for x[0])"
        return f"{_shown(argument)}: {key!r} cannot be a key, which has {allowed}"
    if value[0] in _TYPOGRAPHIC:
        bare = value.strip(_TYPOGRAPHIC)
        return f"{_shown(argument)}: typographic quotes are letters; with plain ones: {for_shell(key, bare)}"
    told = f"{_shown(argument)}: this value cannot be read; if it is one text, write {for_shell(key, value)}"
    if sweep and "," in value:
        texts = shlex.quote(f"{key}={','.join(quote(part.strip()) for part in value.split(','))}")
        return f"{told}; if it is several, {texts}"
    if value[0] in "[{":
        return f"{told}; if it is a list or a mapping, close it, and put texts with = , : ( ) or brackets in quotes"
    if "Unknown function" in str(error):
        return f"{told}; {str(error).rpartition(chr(10))[2]}"
    return told


def _touches_equals(i: int, arguments: Sequence[str]) -> bool:
    """Whether an argument beside number ``i`` has lost it to spaces: ``a= b`` or ``a =b``."""
    before = arguments[i - 1] if i else ""
    after = arguments[i + 1] if i + 1 < len(arguments) else ""
    return before.endswith("=") or after.startswith("=")


def _what_was_meant(i: int, arguments: Sequence[str], repository: IConfigRepository) -> str:
    argument = arguments[i].removesuffix(".yaml")
    for group in ("experiment", "data", "model"):
        if repository.config_exists(f"{group}/{argument}"):
            return f"; did you mean {group}={argument}?"
    if i and "=" in arguments[i - 1]:
        whole = shlex.quote(f"{_shown(arguments[i - 1])} {arguments[i]}")
        return f", like seed=1; where a value has spaces, the whole is quoted: {whole}"
    return ", like seed=1"


def _shown(argument: str) -> str:
    """``argument`` as the user wrote it: without the ``++`` that is ours."""
    return argument.removeprefix("++")


def wrong_choices(overrides: Iterable[Override], repository: IConfigRepository) -> Iterator[str]:
    """A line for each group and each option that there is not."""
    for override in overrides:
        group = override.key_or_group
        shown = _shown(override.get_key_element())
        if not repository.group_exists(group):
            if "/" in group or override.package is not None:
                yield f"{shown}: no group {group!r}{nearest_group(group, repository)}"
            continue
        for option in _options(override):
            if isinstance(option, dict):
                if "/" in group or override.package is not None:
                    key = override.package or group.replace("/", ".")
                    yield f"{shown}: takes a name; a mapping goes to its key: {key}={{...}}"
            elif (wrong := _wrong_option(group, option, repository)) is not None:
                yield f"{shown}: {wrong}"


def _options(override: Override) -> list[Any]:
    value = override.value()
    if isinstance(value, Sweep):
        listed = getattr(value, "list", None)  # a range or a glob has none
        found = [v.text if isinstance(v, QuotedString) else v for v in listed] if isinstance(listed, list) else []
    else:
        found = list(value) if isinstance(value, list) else [value]
    return [] if override.is_delete() and found == [None] else found


def _wrong_option(group: str, option: Any, repository: IConfigRepository) -> str | None:
    text = str(option)
    if "${" in text or text == "???" or (option is not None and repository.config_exists(f"{group}/{text}")):
        return None
    known = options_of(group, repository)
    if inside := [name for name in known if name.startswith(f"{text}/")]:
        return f"{text!r} is a folder; it has {', '.join(inside)}"
    stem = text.rpartition("/")[2].removesuffix(".yaml")
    same = [name for name in known if name.rpartition("/")[2] == stem]
    if same:
        return f"no option {text!r}; did you mean {' or '.join(map(repr, same))}?"
    return f"no option {text!r}{did_you_mean(text, known) or did_you_mean(stem, known) or _listed(known)}"


def _listed(known: Sequence[str]) -> str:
    return f"; known: {', '.join(known)}" if known else "; it has none"


def options_of(group: str, repository: IConfigRepository) -> list[str]:
    """The options of ``group``, those in its folders too: ``retinanet/shapes``.

    A folder that is a group of its own (``model/neck``) is not one of them.
    """
    found = repository.get_group_options(group, ObjectType.CONFIG)
    if group == "experiment" or group.startswith("experiment/"):
        for folder in repository.get_group_options(group, ObjectType.GROUP):
            found += [f"{folder}/{name}" for name in options_of(f"{group}/{folder}", repository)]
    return sorted(found)


def nearest_group(group: str, repository: IConfigRepository) -> str:
    """What :func:`did_you_mean` says of a group that there is not."""
    known = [name for name in _groups("", repository) if name.partition("/")[0] not in ("hydra", "experiment")]
    if group.startswith("hydra/"):
        known = [f"hydra/{name}" for name in repository.get_group_options("hydra", ObjectType.GROUP)]
    return did_you_mean(group, known)


def _groups(parent: str, repository: IConfigRepository) -> Iterator[str]:
    for name in repository.get_group_options(parent, ObjectType.GROUP):
        path = f"{parent}/{name}" if parent else name
        yield path
        yield from _groups(path, repository)


@functools.cache
def _repository() -> ConfigRepository:
    """The groups of the installation."""
    return ConfigRepository(create_config_search_path(str(config_dir())))
