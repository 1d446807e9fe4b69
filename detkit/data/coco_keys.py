"""What a COCO file says beyond what detkit reads of it: masks, attributes, licences, and whatever else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PARTS = ("images", "annotations", "categories")

#: Written of every file with landmarks, and empty where the source does not tell it.
_FILLED = ("skeleton",)


class OtherKeys:
    """The records of a COCO file by their ids, to be written again beside what a data set holds.

    Args:
        path: the file, of which a data set was read; None for a data set of another layout.
    """

    def __init__(self, path: str | Path | None) -> None:
        content: dict[str, Any] = {} if path is None else json.loads(Path(path).read_bytes())
        self._around = {key: value for key, value in content.items() if key not in _PARTS}
        # of several with one id the last counts, as for the data set
        self._records = {part: {r["id"]: r for r in content.get(part, ()) if _has_id(r)} for part in _PARTS}

    def beside(self, content: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """``content``, a COCO file's, with the keys of the source that it does not have itself."""
        return self._around | {
            part: [self._completed(record, self._records[part].get(record["id"], {})) for record in content[part]]
            for part in _PARTS
        }

    def _completed(self, record: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
        return {**record, **{key: value for key, value in source.items() if key not in record or key in _FILLED}}


def _has_id(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("id"), int | float)
