"""Random numbers that depend on what they are for, never on which worker or process draws them."""

from __future__ import annotations

import hashlib
import random

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
    return torch.Generator(device=device).manual_seed(_stable_hash(f"{int(key)}|{salt}"))


def _stable_hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
