"""Loading renamed tensors into a detector: what does not fit is named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

#: A tensor of a layer in a row of layers: the row, the layer's number, the tensor's name.
_IN_A_ROW = re.compile(r"^(.*)\.(\d+)\.([^.]+)$")

_COUNT = "num_batches_tracked"


def load_converted(model: torch.nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load ``state`` into ``model`` and return the names that it lacks.

    The counters of batch norms that are frozen in ``model`` are left out: those count no batches.

    Raises:
        ValueError: a name that the model does not have, or a tensor of another shape; what is missing is named as well.
    """
    own = model.state_dict()
    state = {k: v for k, v in _joined(state, own).items() if k in own or not _is_idle_count(k, own)}
    foreign, missing = sorted(state.keys() - own.keys()), sorted(own.keys() - state.keys())
    wrong = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in sorted(state.keys() & own.keys())
        if state[k].shape != own[k].shape
    ]
    if foreign or wrong:
        parts = (("unknown", foreign), ("of another shape", wrong), ("missing", missing))
        raise ValueError("the weights do not fit the model: " + ", ".join(_told(w, n) for w, n in parts if n))
    model.load_state_dict(state, strict=False)
    return missing


def _joined(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under the names of ``own`` where that has joined a convolution and the norm after it to one layer."""
    return {_joined_name(name, own): value for name, value in state.items()}


def _joined_name(name: str, own: Mapping[str, Tensor]) -> str:
    found = _IN_A_ROW.match(name)
    if name in own or found is None:
        return name
    row, number, kind = found[1], int(found[2]), found[3]
    candidates = (f"{row}.{number}.conv.{kind}", f"{row}.{number - 1}.norm.{kind}")
    return next((c for c in candidates if c in own), name)


def _is_idle_count(name: str, own: Mapping[str, Tensor]) -> bool:
    """Whether ``name`` counts the batches of a norm that in ``own`` counts none."""
    if not name.endswith(f".{_COUNT}"):
        return False
    return _joined_name(f"{name.removesuffix(_COUNT)}running_mean", own) in own


def _told(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what} {names[:3]}"
