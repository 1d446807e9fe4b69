"""Pretrained backbone weights: torchvision's own files through its own loading path, or a file of the user's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from detkit.utils.tensors import check_dense, not_finite, unfit_type


def load_backbone_weights(module: nn.Module, source: str | None, imagenet: WeightsEnum) -> None:
    """Load ``source`` into ``module``: "imagenet", the path of a state dict, or None for random weights.

    A classifier that the file carries and the backbone lacks (``fc``, ``classifier``) is left out, and modules that say
    they are ``added`` to the published network keep their initial values where the file lacks them; anything else that
    does not fit is an error.

    Raises:
        ValueError: the file is not there and cannot be fetched, or does not fit, or a value in it is not finite; the
            message names it.
    """
    if source is None:
        return
    _load(module, _imagenet_state(imagenet) if source == "imagenet" else read_state(Path(source)), source)


def load_file(module: nn.Module, source: str | None) -> None:
    """:func:`load_backbone_weights` for a network without published weights: the path of a state dict, or None."""
    if source is not None:
        _load(module, read_state(Path(source), "the path of a state dict, or null"), source)


def _load(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    own = module.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(("fc.", "classifier."))}
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}  # frozen norms do not count batches
    state = counters | {k: v for k, v in state.items() if k in counters or not k.endswith("num_batches_tracked")}
    added = {f"{n}.{k}" for n, m in module.named_modules() if getattr(m, "added", False) for k in m.state_dict()}
    missing, unexpected = sorted(own.keys() - state.keys() - added), sorted(state.keys() - own.keys())
    both = sorted(own.keys() & state.keys())
    wrong = [k for k in both if own[k].shape != state[k].shape]
    unfit = [f"{k} {kind}" for k in both if (kind := unfit_type(state[k], own[k]))]
    if missing or unexpected or wrong or unfit:
        raise ValueError(
            f"weights {source!r} do not fit {type(module).__name__}: {_count('missing', missing)}, "
            f"{_count('unexpected', unexpected)}, {_count('of another shape', wrong)}"
            + (f", {_count('of another type', unfit)}" if unfit else "")
        )
    module.load_state_dict(state, strict=False)  # checked above
    if bad := not_finite((k, v) for k, v in module.state_dict().items() if k in state):
        raise ValueError(f"weights {source!r} are of no use: {', '.join(bad)}")


def _imagenet_state(weights: WeightsEnum) -> Mapping[str, Tensor]:
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot load the ImageNet weights {weights}: {error}. {_by_hand(weights.url)}, or set weights=null to "
            "train from scratch"
        ) from error


def published_file(url: str) -> Path:
    """torchvision's file at ``url``, fetched once into torch's folder of downloads.

    Raises:
        ValueError: it cannot be fetched; the message says where the file could be put.
    """
    path = _downloads() / url.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digits = path.stem.rpartition("-")[2]  # what its SHA-256 begins with
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot fetch {url}: {error}. {_by_hand(url)}") from error
    return path


def _by_hand(url: str) -> str:
    return f"Without a network, put {url} into {_downloads()} (TORCH_HOME is {os.environ.get('TORCH_HOME', 'not set')})"


def _downloads() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def read_state(path: Path, allowed: str = "'imagenet', the path of a state dict, or null") -> Mapping[str, Tensor]:
    """A state dict from a file that is not trusted.

    Raises:
        ValueError: there is no such file, or it is something else; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"weights: no file {str(path)!r}; allowed: {allowed}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; each means that this file is not usable
        if refused := re.search(r"GLOBAL (\S+)", str(error)):  # torch's own words tell how to run it nevertheless
            raise ValueError(f"weights: {path}: refused: it asks for {refused[1]}, which could run code") from error
        raise ValueError(f"weights: {path} is not a readable state dict: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights: {path} is not a state dict (name -> tensor)")
    try:
        check_dense(state)
    except ValueError as error:
        raise ValueError(f"weights: {path}: {error}") from error
    return state


def _count(what: str, keys: list[str]) -> str:
    return f"{len(keys)} {what}" + (f" ({', '.join(keys)})" if keys else "")
