"""What an exported file says of itself: its classes, its input, its thresholds, and the checkpoint it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detkit.config import ConfigError
from detkit.engine.state.checkpoint import Checkpoint
from detkit.models.export.runtime import ExportedDetector, onnx_run, onnx_session
from detkit.structures import Categories
from detkit.utils.version import __version__

#: The entry of the file's metadata under which all of it stands.
ENTRY = "detkit"

#: Grows when the meaning of an entry changes.
FORMAT = 1

SUFFIX = ".onnx"


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the maker of a file promises: plain values, written as JSON.

    ``input``: in words and as ``layout`` ("bchw" or "bhwc") and ``size``, None for any; ``score_threshold``: the least
    score that comes out; ``thresholds``: of the classes, None without a calibration; ``config``: as trained.
    """

    categories: Mapping[str, Any]
    input: str
    layout: str
    size: tuple[int, int] | None
    score_threshold: float | None
    thresholds: list[float] | None
    checkpoint: str
    sha256: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    detkit: str = __version__
    format: int = FORMAT

    def metadata(self) -> dict[str, str]:
        """The entries of an ONNX file: all of it, and beside it what a reader without detkit looks for."""
        return {
            ENTRY: json.dumps(asdict(self)),
            "class_names": json.dumps(list(Categories.from_dict(self.categories).names)),
            "input": self.input,
            "thresholds": json.dumps(self.thresholds),
            "checkpoint_sha256": self.sha256,
        }


def _check(contract: Contract, session: Any) -> None:
    """Refuse a file that does not take and give what its ``contract`` says."""
    size = contract.size
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(isinstance(s, int) for s in size)):
        raise ValueError(f"size: must be null or [height, width], not {size!r}")
    channels = {"bchw": 1, "bhwc": 3}.get(contract.layout)
    if channels is None:
        raise ValueError(f"layout: must be bchw or bhwc, not {contract.layout!r}")
    inputs, num = session.get_inputs(), len(session.get_outputs())
    takes = [(one.type, len(one.shape), list(one.shape[channels : channels + 1])) for one in inputs]
    if takes != [("tensor(uint8)", 4, [3])] or num not in (3, 4):
        raise ValueError(
            f"its layout, {contract.layout}, does not fit what the file takes and gives: {takes}, {num} outputs"
        )


def is_exported(path: str | Path) -> bool:
    """Whether ``path`` is named as an exported file that tools read."""
    return Path(path).suffix.lower() == SUFFIX


def load_exported(path: str | Path) -> tuple[Checkpoint, ExportedDetector]:
    """The detector in an exported file, and a checkpoint without weights that says what stands in its metadata.

    Raises:
        ConfigError: there is no such file, or it is not one of detkit's.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"checkpoint: {path}: there is no such file")
    session = onnx_session(path)
    held = session.get_modelmeta().custom_metadata_map
    if ENTRY not in held:
        raise ConfigError(f"checkpoint: {path} was not written by detkit's export: it has no entry {ENTRY!r}")
    try:
        contract = Contract(**json.loads(held[ENTRY]))
        categories = Categories.from_dict(contract.categories)
        _check(contract, session)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ConfigError(f"checkpoint: {path}: its entry {ENTRY!r} cannot be read: {error}") from error
    if contract.format != FORMAT:
        raise ConfigError(f"checkpoint: {path}: format {contract.format!r}; this is detkit {__version__}, of {FORMAT}")
    checkpoint = Checkpoint(
        step=0, detector={}, categories=categories, config=contract.config, metrics=contract.metrics, source=str(path)
    )
    detector = ExportedDetector(
        onnx_run(session), channels_last=contract.layout == "bhwc", size=contract.size,
        calibrated=contract.thresholds is not None,
    )  # fmt: skip
    return checkpoint, detector
