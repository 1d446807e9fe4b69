"""A checkpoint to be given away: weights and plain text in one safetensors file, in which nothing can run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit.structures import Categories
from detkit.utils.files import atomic_write

SUFFIX = ".safetensors"

#: Grows when the meaning of what is stored changes.
FORMAT = 1

#: The entry of the file's metadata under which all but the weights stands, as JSON.
ENTRY = "detkit"

_WORDS = {int: "a whole number", str: "a text", Mapping: "a mapping"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What stands beside the weights. ``licence``: what they may be used for, in the words of who gives them;
    ``digest``: of the weights, by which a damaged file is known."""

    step: int
    categories: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    calibration: Mapping[str, Any] | None
    licence: str
    digest: str
    format: int = FORMAT


def write_published(path: Path, weights: Mapping[str, Tensor], beside: Published) -> None:
    """Write both to ``path``, whole or not at all.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    from safetensors.torch import save

    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
    text = json.dumps(dataclasses.asdict(beside))
    # in memory: safetensors' own writer has errors of its own, and makes files that others may not read
    atomic_write(path, save(own, metadata={ENTRY: text}))


def read_published(path: Path) -> tuple[dict[str, Tensor], Published]:
    """The weights and what stands beside them.

    Raises:
        ValueError: it is no such file, of another format, or damaged; the message names it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or no safetensors file: {error}") from error
    if ENTRY not in metadata:
        raise ValueError(f"{path}: not published by detkit: it has no entry {ENTRY!r}")
    try:
        held = json.loads(metadata[ENTRY])
        beside = Published(**held)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its entry {ENTRY!r} cannot be read: {error}") from error
    if beside.format != FORMAT:
        raise ValueError(f"{path}: format {beside.format!r}; this detkit reads format {FORMAT}")
    check_entries({"calibration": None, **held}, {"licence": str, "digest": str}, path)
    if digest_of(weights) != beside.digest:
        raise ValueError(f"{path}: damaged: its weights are not those that were published")
    return weights, beside


def check_entries(held: Mapping[str, Any], more: Mapping[str, type], path: Path) -> None:
    """Refuse a checkpoint that lacks an entry or has another thing there, before anything reads it.

    Args:
        held: what all checkpoints have, and ``calibration``, which may be None.
        more: entries of this kind of file, with their types.

    Raises:
        ValueError: the message names the entry.
    """
    kinds = {"step": int, "categories": Mapping, "config": Mapping, "metrics": Mapping, "versions": Mapping, **more}
    for name, kind in kinds.items():
        if name not in held:
            raise ValueError(f"{path}: it has no entry {name!r}")
        if not isinstance(held[name], kind):
            raise _ill_typed(path, name, _WORDS[kind], held[name])
    if held["calibration"] is not None and not isinstance(held["calibration"], Mapping):
        raise _ill_typed(path, "calibration", "a mapping", held["calibration"])
    for name, kind in (("metrics", (int, float)), ("versions", str)):
        for key, value in held[name].items():
            if not isinstance(value, kind):
                raise _ill_typed(path, f"{name}.{key}", "a text" if kind is str else "a number", value)
    try:
        Categories.from_dict(held["categories"])
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: its entry 'categories' cannot be read: {error!r}") from error


def _ill_typed(path: Path, name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"{path}: its entry {name!r} must be {wanted}, not {reprlib.repr(value)}")


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """One SHA-256 of all names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
