"""Loading renamed tensors into a detector: what does not fit is named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detkit.utils.tensors import unfit_type

#: A tensor of a layer in a row of layers: the row, the layer's number, the tensor's name.
_IN_A_ROW = re.compile(r"^(.*)\.(\d+)\.([^.]+)$")

_COUNT = "num_batches_tracked"


def load_converted(model: torch.nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load ``state`` into ``model`` and return the names that it lacks.

    The counters of batch norms that are frozen in ``model`` are left out: those count no batches.

    Raises:
        ValueError: a name that the model does not have, or a tensor of another shape or of numbers that are no weights
            (whole, complex); what is missing is named as well.
    """
    own = model.state_dict()
    state = _under_own_names(state, own)
    unknown, wrong, unfit, missing = _faults(own, state)
    if unknown or wrong or unfit:
        raise ValueError(f"the weights do not fit the model: {_told(unknown, wrong, unfit, missing)}")
    model.load_state_dict(state, strict=False)
    return missing


def faults_of(model: torch.nn.Module, state: Mapping[str, Tensor], but: Sequence[str] = ()) -> str:
    """Every tensor of ``state`` that ``model`` does not have or has of another shape or type, and all that it lacks.

    Args:
        but: of which nothing is said.
    """
    own = model.state_dict()
    faults = _faults(own, _under_own_names(state, own))
    return _told(*([name for name in names if name not in but] for names in faults))


def _under_own_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in _joined(state, own).items() if k in own or not _is_idle_count(k, own)}


def _faults(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[str], list[str]]:
    """Unknown names of ``state``, those of another shape with both, those of a type that is no weight's, and missing
    ones."""
    both = sorted(state.keys() & own.keys())
    wrong = [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in both if state[k].shape != own[k].shape]
    unfit = [f"{k} {kind}" for k in both if (kind := unfit_type(state[k], own[k]))]
    return sorted(state.keys() - own.keys()), wrong, unfit, sorted(own.keys() - state.keys())


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


def _told(unknown: Sequence[str], wrong: Sequence[str], unfit: Sequence[str], missing: Sequence[str]) -> str:
    kinds = ("unknown", "of another shape", "of another type", "missing")
    parts = zip(kinds, (unknown, wrong, unfit, missing), strict=True)
    return ", ".join(f"{len(names)} {what} {names}" for what, names in parts if names)
