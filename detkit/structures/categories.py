"""The class list, with the ids that the data set uses for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Categories:
    """K classes: label k inside detkit is ``names[k]``, and ``ids[k]`` in the data set's numbering (gaps are fine)."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.names)} category names but {len(self.ids)} ids")
        if not self.names:
            raise ValueError("a data set needs at least one category")
        for what, values in (("id", self.ids), ("name", self.names)):
            twice = sorted({v for v in values if values.count(v) > 1}, key=str)
            if twice:
                raise ValueError(f"category {what} given more than once: {twice}")

    def __len__(self) -> int:
        return len(self.names)

    def difference(self, other: Categories) -> str:
        """What distinguishes ``other`` from this list, in words; empty when they are the same."""
        if self == other:
            return ""
        missing = [n for n in self.names if n not in other.names]
        extra = [n for n in other.names if n not in self.names]
        words = [f"missing {missing}"] * bool(missing) + [f"not known {extra}"] * bool(extra)
        return "; ".join(words) or f"same names, other order or ids: {self.to_dict()} against {other.to_dict()}"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for a checkpoint or a JSON file."""
        return {"names": list(self.names), "ids": list(self.ids)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Categories:
        """From what :meth:`to_dict` gave."""
        return cls(tuple(state["names"]), tuple(state["ids"]))
