"""Parameters that no loss reads: those of a stage of the backbone that the neck does not take, say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from detkit.utils import dist
from detkit.utils.log import logger
from detkit.utils.seed import global_state, restore_global_state


class Before:
    """The buffers of ``detector`` and the random states, to be put back before a forward pass is repeated."""

    def __init__(self, detector: nn.Module) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in detector.buffers()]
        self._random = global_state()

    def put_back(self) -> None:
        """As it was."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        restore_global_state(self._random)


def unread_by_all(detector: nn.Module, loss: Tensor) -> list[str]:
    """Names of the trainable parameters that the ``loss`` of no process reads."""
    unread = unread_parameters(detector, loss)
    everywhere = set(unread).intersection(*dist.all_gather(unread))
    return [name for name in unread if name in everywhere]


def unread_parameters(detector: nn.Module, loss: Tensor) -> list[str]:
    """Names of the trainable parameters of ``detector`` that the graph of ``loss`` does not lead to."""
    waiting, seen, read = [loss.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        read.add(id(getattr(node, "variable", None)))
        waiting += [parent for parent, _ in node.next_functions]
    return [name for name, p in detector.named_parameters() if p.requires_grad and id(p) not in read]


@contextmanager
def without_gradients(detector: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within the block the parameters ``names`` of ``detector`` do not ask for gradients."""
    parameters = [detector.get_parameter(name) for name in names]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def tell_unread(names: Sequence[str]) -> None:
    """A warning with the parts that ``names`` are of, where there are any."""
    if names and dist.is_main():
        parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
        logger.warning(
            "no loss reads %s (%d parameters): they stay as they are and only cost time", ", ".join(parts), len(names)
        )
