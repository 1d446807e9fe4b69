"""An experiment file from choices: YAML in which each line stands below its reason."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detkit.app.recipe.given import Choice

_WIDTH = 118

#: The section that files begin with.
_DEFAULTS = "defaults"


def experiment(headline: str, command: str, remarks: Sequence[str], choices: Sequence[Choice]) -> str:
    """The whole file.

    Args:
        headline: what it is, in a line.
        command: that runs it.
        remarks: paragraphs above the lines.
        choices: groups go into the defaults list, keys into their sections; in this order.
    """
    top = ["# @package _global_", *_comment(headline), f"#   {command}"]
    above = [line for remark in remarks for line in _comment(remark)]
    groups = [c for c in choices if c.key.startswith("/")]
    tree: dict[str, Any] = {}
    for choice in choices:
        if not choice.key.startswith("/"):
            _put(tree, choice.key.split("."), choice)
    body = [f"{_DEFAULTS}:", *(line for c in groups for line in _group(c)), "", *_lines(tree, "")]
    return "\n".join([*top, *above, *body]) + "\n"


def _put(tree: dict[str, Any], way: Sequence[str], choice: Choice) -> None:
    *sections, last = way
    for section in sections:
        tree = tree.setdefault(section, {})
    assert last not in tree, f"{choice.key} is chosen twice"
    tree[last] = choice


def _group(choice: Choice) -> Iterator[str]:
    yield from _comment(choice.reason, "  ")
    yield f"  - override {choice.key}: {_value(choice.value)}"


def _lines(tree: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, node in tree.items():
        if isinstance(node, Choice):
            yield from _comment(node.reason, indent)
            yield f"{indent}{_value(name)}: {_value(node.value)}"
        else:
            yield f"{indent}{name}:"
            yield from _lines(node, indent + "  ")


def _comment(text: str, indent: str = "") -> list[str]:
    text = "".join(c if c.isprintable() else " " for c in text)  # YAML ends a line at more than LF, or refuses it
    width = _WIDTH - len(indent)
    return textwrap.wrap(
        text, width, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _value(value: Any) -> str:
    """``value`` in YAML, in one line: as JSON, which YAML is, but words without quotes where they need none."""
    if isinstance(value, str) and value.replace("_", "").replace("/", "").isalnum() and not _is_special(value):
        return value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(k)}: {_value(v)}" for k, v in value.items()) + "}"
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)


def _is_special(word: str) -> bool:
    return word.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n") or word[0].isdigit()
