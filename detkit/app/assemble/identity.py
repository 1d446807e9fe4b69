"""What of a configuration changes what is computed, and whether two of them compute the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: What does not change anything that is computed.
_FREE = (
    *("resume", "device", "process_timeout", "run_root", "callbacks", "trainer.save_every", "trainer.log_every"),
    *(f"data.loader.{s}.{key}" for s in ("train", "val") for key in ("num_workers", "timeout", "pin_memory")),
)

#: Where the data lie: a run may go on from a copy of them elsewhere, but two runs on other data are two runs.
_PLACES = tuple(f"data{s}.root" for s in ("", ".train", ".val"))


def changed_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], allow: Sequence[str] = ()
) -> list[tuple[str, Any, Any]]:
    """Key, value before and value now wherever two configurations differ in what is computed, but for ``allow``."""
    flat_before, flat_now = dict(leaves(before)), dict(leaves(now))
    keys = sorted(flat_before.keys() | flat_now.keys())
    return [
        (k, flat_before.get(k), flat_now.get(k))
        for k in keys
        if flat_before.get(k) != flat_now.get(k) and not is_free(k, (*_FREE, *_PLACES, *allow))
    ]


def is_free(key: str, free: tuple[str, ...] = _FREE) -> bool:
    """Whether ``key`` says nothing about what is computed."""
    return any(key == name or key.startswith(name + ".") for name in free)


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten digits for what ``config`` (plain values, interpolations as they stand) computes."""
    said = sorted((key, value) for key, value in leaves(config) if not is_free(key))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested mappings, by its full key."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
