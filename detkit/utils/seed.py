"""Random numbers that depend on what they are for, never on which worker or process draws them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (all devices): what initialises the weights.

    Raises:
        ValueError: ``seed`` is negative or does not fit into 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), not {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_key(seed: int, epoch: int, index: int) -> int:
    """A number in [0, 2**63) for what is drawn for image ``index`` in ``epoch``.

    The same on every machine and in every version of Python, whose own ``hash`` promises neither.
    """
    return _stable_hash(f"{int(seed)},{int(epoch)},{int(index)}")


def generator(key: int, salt: str = "", device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by ``key``; a ``salt`` for each purpose keeps two draws for one image independent."""
    return torch.Generator(device=device).manual_seed(key_for(key, salt))


def key_for(key: int, salt: str) -> int:
    """A number in [0, 2**63) for one purpose, ``salt``: what ``generator(key, salt)`` is seeded with."""
    return _stable_hash(f"{int(key)}|{salt}")


def global_state() -> dict[str, Any]:
    """The state of the generators that :func:`seed_everything` seeds, as plain numbers and tensors.

    Plain, because ``torch.load(weights_only=True)`` refuses numpy's own state.
    """
    version, words, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(key).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_global_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`global_state` gave; a CUDA state only where this process uses CUDA."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, key, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(key, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _stable_hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
