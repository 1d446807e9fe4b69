"""What an experiment chooses inside a slot, when the command line puts something else into the slot itself.

An experiment says ``override /loss@model.head.box_loss: GIoULoss``, and the command line ``model/head=two_stage``,
whose losses stand elsewhere. Hydra takes that for a mistake of the experiment's, though it is right for its own head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hydra._internal.defaults_list import Overrides

_hydras_check = Overrides.ensure_overrides_used


class InnerOverride(NamedTuple):
    """A choice for which there is no slot any more: ``file`` says ``override /key: option``."""

    key: str
    option: str
    file: str

    def __str__(self) -> str:
        return f"{self.key}={self.option} ({self.file}.yaml)"


def let_go_of_inner_overrides() -> None:
    """Let Hydra compose without them; every other override without a slot stays a mistake."""
    Overrides.ensure_overrides_used = _check


def inner_overrides(overrides: Overrides) -> Iterator[InnerOverride]:
    """Those that were left out."""
    given = [key for key, meta in overrides.override_metadata.items() if meta.external_override]
    outer = [*given, *overrides.deletions]
    for key, meta in overrides.override_metadata.items():
        file = meta.containing_config_path
        if meta.used or meta.external_override or file is None:
            continue
        if any(_is_inside(key, slot) and not _is_part_of(file, slot) for slot in outer):
            yield InnerOverride(key, str(overrides.override_choices[key]), file)


def slot_of(key: str) -> str:
    """The place that ``key`` fills: ``model.head`` for ``model/head``, ``a.b`` for ``loss@a.b``."""
    group, _, package = key.partition("@")
    return package or group.replace("/", ".")


def _is_inside(key: str, outer: str) -> bool:
    return slot_of(key).startswith(f"{slot_of(outer)}.")


def _is_part_of(file: str, outer: str) -> bool:
    """Whether ``file`` is an option of ``outer`` or of a part of it: its own slots must be right."""
    return file.startswith(outer.partition("@")[0] + "/")


def _check(self: Overrides) -> None:
    inner = {found.key for found in inner_overrides(self)}
    whole = self.override_metadata
    self.override_metadata = {key: meta for key, meta in whole.items() if key not in inner}
    try:
        _hydras_check(self)
    finally:
        self.override_metadata = whole
