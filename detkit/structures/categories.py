"""The class list, with the ids that the data set uses for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detkit.structures.landmarks import mirror_of


@dataclass(frozen=True, slots=True)
class Categories:
    """K classes: label k inside detkit is ``names[k]``, and ``ids[k]`` in the data set's numbering (gaps are fine).

    ``landmarks``: names of the L points that objects may have, of whatever class; they distinguish no two lists.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    landmarks: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.names)} category names but {len(self.ids)} ids")
        if not self.names:
            raise ValueError("a data set needs at least one category")
        columns = (("category id", self.ids), ("category name", self.names), ("landmark", self.landmarks))
        for what, values in columns:
            twice = sorted({v for v in values if values.count(v) > 1}, key=str)
            if twice:
                raise ValueError(f"{what} given more than once: {twice}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mirror(self) -> tuple[int, ...]:
        """(L,): which landmark each one is in a mirror image, by the words left and right in their names."""
        return mirror_of(self.landmarks)

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
        state: dict[str, Any] = {"names": list(self.names), "ids": list(self.ids)}
        return state | ({"landmarks": list(self.landmarks)} if self.landmarks else {})

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Categories:
        """From what :meth:`to_dict` gave."""
        return cls(tuple(state["names"]), tuple(state["ids"]), tuple(state.get("landmarks", ())))
