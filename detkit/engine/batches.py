"""What the engine asks of a loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from detkit.structures import Batch


class TrainBatches(Protocol):
    """Batches without end; batch number ``start`` of the run is the same whether or not those before it were read."""

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Batches without end, from number ``start`` of the training on."""
        ...


class EvalBatches(Protocol):
    """Batches of every validation image exactly once, in a fixed order; several processes may have a share each."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...
