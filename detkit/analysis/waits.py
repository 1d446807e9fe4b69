"""For what the host of a GPU would wait, found on the CPU by watching every operation.

A kernel is launched and the host goes on, except where it must know what came out: a number (``item``), how many there
are (``nonzero``, brackets with a mask, NMS), or that a copy from ordinary memory is done. Each such wait empties the
GPU's queue. Here the CPU plays both parts: tensors of the device say that they are on ``cpu:0``, those of the host that
they are on ``cpu``, which PyTorch takes for the same. What is made without ``device=``, or brought by ``cpu()``, is the
host's; what is made of the device's is the device's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detkit.utils.transfer import forget_constants

_PACKAGE = Path(__file__).parents[1]
_HOST, _DEVICE = torch.device("cpu"), torch.device("cpu", 0)

#: Operations of which the size of the result, or the result itself, must be known to the host.
_ASKING = frozenset(
    {
        *("aten::nonzero", "aten::masked_select", "aten::_local_scalar_dense", "aten::equal", "aten::bincount"),
        *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "torchvision::nms"),
    }
)
#: What makes tensors: on the host, unless told a device.
_FACTORIES = frozenset(
    {
        *(torch.tensor, torch.as_tensor, torch.from_numpy, torch.arange, torch.linspace, torch.zeros, torch.ones),
        *(torch.full, torch.empty, torch.rand, torch.randn, torch.randint, torch.randperm),
    }
)


_DEVICE_OF = torch.Tensor.device.__get__  # pyright: ignore[reportAttributeAccessIssue]
#: Copies, and brackets, which send an index of the host to the device.
_TAKES_BOTH = frozenset({"aten::copy_", "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})


class Wait(NamedTuple):
    """``what`` was asked for, and at which ``place`` of detkit ("matching/select.py:12 _select")."""

    what: str
    place: str


@dataclass(slots=True)
class Waits:
    """``waits``: where the host stops; ``sent``: copies to the device that it does not wait for."""

    waits: list[Wait] = field(default_factory=list)
    sent: list[Wait] = field(default_factory=list)


@contextmanager
def watched() -> Iterator[Waits]:
    """Collect the waits of what runs inside the block.

    Tensors that were there before are the device's; what an optimiser keeps on the CPU (Adam's step counts) must be
    made inside. Registered operations of detkit are kernels, and not looked into.

    Raises:
        RuntimeError: tensors of both go into one operation, which a GPU would refuse.
    """
    found = Waits()
    forget_constants()
    places = _Places()
    with _Operations(found, places), _Calls(found, places):
        yield found


class _Places:
    """Which tensors are the host's: by their memory, which is kept, so that no other gets its address."""

    def __init__(self) -> None:
        self._of_host: dict[int, Tensor] = {}
        self.is_quiet = False

    def put_on_host(self, result: Any) -> None:
        for tensor in _tensors(result):
            self._of_host[_memory(tensor)] = tensor

    def put_on_device(self, tensor: Tensor) -> None:
        self._of_host.pop(_memory(tensor), None)

    def on_host(self, tensor: Tensor) -> bool:
        return _memory(tensor) in self._of_host

    def of(self, func: Any, given: Sequence[Tensor]) -> bool:
        """Whether an operation on ``given`` tensors is the host's; single numbers may be of either side."""
        sides = {self.on_host(t) for t in given if t.ndim} or {self.on_host(t) for t in given}
        if len(sides) > 1 and func._schema.name not in _TAKES_BOTH:
            raise RuntimeError(f"{_place()}: {func._schema.name} has tensors of the host and of the device")
        return sides == {True}


class _Operations(TorchDispatchMode):
    """Operations as they are run, those of the backward pass too."""

    def __init__(self, found: Waits, places: _Places) -> None:
        super().__init__()
        self._found, self._places = found, places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of_host = self._places.of(func, _tensors((args, kwargs)))
        what = None if of_host or self._places.is_quiet else self._asks(func, args, kwargs or {})
        if what is not None:
            self._found.waits.append(Wait(what, _place()))
        result = func(*args, **(kwargs or {}))
        if of_host:
            self._places.put_on_host(result)
        return result

    def _asks(self, func: Any, args: Sequence[Any], kwargs: Any) -> str | None:
        brackets = func._schema.name.startswith("aten::index")
        if brackets and any(map(self._places.on_host, _tensors(args[1]))):
            return "index of the host"
        return _asks(func, args, kwargs)


class _Calls(TorchFunctionMode):
    """Calls from Python, which alone say where a tensor is wanted."""

    def __init__(self, found: Waits, places: _Places) -> None:
        super().__init__()
        self._found, self._places = found, places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == _DEVICE_OF:
            return _HOST if self._places.on_host(args[0]) else _DEVICE
        if name in ("cpu", "to", "cuda") and isinstance(args[0], Tensor):
            return self._moved(func, name, args, kwargs)
        if func is F.one_hot:  # looks at its values on a CPU alone
            return self._quietly(func, args, kwargs)
        if func in _FACTORIES:
            return self._made(func, args, kwargs)
        if name == "new_tensor" and not self._places.on_host(args[0]):
            self._wait("constant to the device")
        elif name in ("tolist", "numpy") and not self._places.on_host(args[0]):
            self._wait(name)
        elif name == "__setitem__" and _sets_number(args):
            self._wait("number by brackets")
        result = func(*args, **kwargs)
        if name == "new_tensor" and self._places.on_host(args[0]):
            self._places.put_on_host(result)
        return result

    def _made(self, func: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        result = func(*args, **kwargs)
        where = kwargs.get("device")
        if (where is None and not _tensors(args)) or (where is not None and torch.device(where) == _HOST):
            self._places.put_on_host(result)
        elif func in (torch.tensor, torch.as_tensor):
            self._wait("constant to the device")
        return result

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
        result = func(*args, **kwargs)
        was_on_host, to_host = self._places.on_host(args[0]), self._to_host(name, args, kwargs)
        if to_host is None or was_on_host == to_host:
            return result
        copy = result.clone()
        if to_host:
            self._wait("copy to the host")
            self._places.put_on_host(copy)
            return copy
        self._places.put_on_device(copy)
        if kwargs.get("non_blocking"):
            self._found.sent.append(Wait("copy to the device", _place()))
        else:
            self._wait("copy to the device")
        return copy

    def _to_host(self, name: str, args: Any, kwargs: Any) -> bool | None:
        """Where a call brings a tensor; None for a call that changes its type alone."""
        if name != "to":
            return name == "cpu"
        where = kwargs.get("device", args[1] if len(args) > 1 else None)
        if isinstance(where, Tensor):
            return self._places.on_host(where)
        if isinstance(where, (str, torch.device)):
            return torch.device(where) == _HOST
        return None

    def _quietly(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._places.is_quiet = True
        try:
            return func(*args, **kwargs)
        finally:
            self._places.is_quiet = False

    def _wait(self, what: str) -> None:
        self._found.waits.append(Wait(what, _place()))


def _asks(func: Any, args: Sequence[Any], kwargs: Any) -> str | None:
    """For what an operation makes the host wait; None for nothing."""
    name = func._schema.name
    if name in _ASKING:
        return name.split("::")[1].lstrip("_")
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave without its size"
    if name == "aten::index" and any(map(_is_mask, args[1])):
        return "mask in brackets"
    if name in ("aten::index_put", "aten::index_put_", "aten::_index_put_impl_") and any(map(_is_mask, args[1])):
        return None if len(args[1]) == 1 and args[2].ndim == 0 else "mask in brackets"  # a number fills without a wait
    return None


def _sets_number(args: Sequence[Any]) -> bool:
    """Whether ``x[index] = number`` has whole numbers in its index: the number is copied to them."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    by_number = any(isinstance(i, Tensor) and not _is_mask(i) for i in index)
    return by_number and not isinstance(args[2], Tensor)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place() -> str:
    """The innermost line of detkit that is being run, this file's left out."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside detkit"
