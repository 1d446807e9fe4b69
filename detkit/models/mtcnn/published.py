"""The published weights: a folder with a state dict for each network."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from detkit.models.backbones.weights import read_state

#: The networks, and the layers whose shape depends on the classes; background and one class is what is published.
NETWORKS = ("pnet", "rnet", "onet")
_CLASS_LAYERS = ("onet.dense6_1.weight", "onet.dense6_1.bias")
_PUBLISHED_OUTPUTS = 2


def from_published(folder: Path, own: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The state dicts pnet.pt, rnet.pt and onet.pt of ``folder`` under the names of :class:`detkit.models.MTCNN`.

    Args:
        own: the model's state dict. What it has no layer for (landmarks) is left out.

    Returns:
        the state, and whether the layer of the classes is in it: it is left out for more classes than one.

    Raises:
        ValueError: a file is missing, or is no state dict; the message names it.
    """
    if not folder.is_dir():
        raise ValueError(f"mtcnn:{folder} is not a folder with {', '.join(f'{n}.pt' for n in NETWORKS)}")
    state: dict[str, Tensor] = {}
    for name in NETWORKS:
        part = read_state(folder / f"{name}.pt", "a folder with pnet.pt, rnet.pt and onet.pt")
        state |= {f"{name}.{key}": value for key, value in part.items()}
    if not any(name.startswith("onet.dense6_3.") for name in own):
        state = {k: v for k, v in state.items() if not k.startswith("onet.dense6_3.")}
    fits = own.get(_CLASS_LAYERS[1]) is not None and len(own[_CLASS_LAYERS[1]]) == _PUBLISHED_OUTPUTS
    return (state if fits else {k: v for k, v in state.items() if k not in _CLASS_LAYERS}), fits
