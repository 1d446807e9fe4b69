"""A checkpoint to be given away: weights and plain text in one safetensors file, in which nothing can run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
        beside = Published(**json.loads(metadata[ENTRY]))
        Categories.from_dict(beside.categories)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: its entry {ENTRY!r} cannot be read: {error}") from error
    if beside.format != FORMAT:
        raise ValueError(f"{path}: format {beside.format}; this detkit reads format {FORMAT}")
    if digest_of(weights) != beside.digest:
        raise ValueError(f"{path}: damaged: its weights are not those that were published")
    return weights, beside


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """One SHA-256 of all names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
