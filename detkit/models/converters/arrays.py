"""Pickles of numpy arrays, read without running anything that they name: detectron2's model zoo is of such files.

A pickle calls what it names. Here it can name stand-ins alone, which keep what they are given; numpy sees bytes, a type
and a shape at the end.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Kind:
    """Stands for ``numpy.dtype``."""

    order = "|"

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        found = np.dtype(str(self.name))
        if found.kind not in "fiu":
            raise ValueError(f"an array of {self.name!r}, which are no numbers")
        return found.newbyteorder(self.order) if self.order in ("<", ">") else found


class _Array:
    """Stands for ``numpy.ndarray``, which pickle makes empty and fills afterwards."""

    def __init__(self, *_: object) -> None:
        self.content: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, data = state
        self.content = (data, kind, shape, "F" if is_fortran else "C")

    def tensor(self) -> Tensor:
        data, kind, shape, order = self.content
        data = data.encode("latin1") if isinstance(data, str) else bytes(data)
        array = np.frombuffer(data, kind.dtype()).reshape(shape, order=order)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _from_buffer(*content: object) -> _Array:
    """How protocol 5 makes an array: bytes, type, shape and order at once."""
    made = _Array()
    made.content = content
    return made


def _bytes_of(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode(encoding)


def _no_bytes() -> bytes:
    """How protocol 2 writes none of them."""
    return b""


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _bytes_of,
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not taken from a file")
        return _STAND_INS[module, name]


def read_arrays(path: Path) -> Any:
    """What is pickled in ``path``, its arrays as tensors.

    Raises:
        ValueError: it is no pickle of plain values and arrays of numbers, or names anything else; nothing was run.
    """
    try:
        with open(path, "rb") as file:
            return _with_tensors(_ArrayUnpickler(file, encoding="latin1").load())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises many kinds
        raise ValueError(f"{path} is not a pickle of numpy arrays: {error}") from error


def _with_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _with_tensors(v) for k, v in value.items()}
    return value.tensor() if isinstance(value, _Array) else value
