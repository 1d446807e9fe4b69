"""What a process must know of the others. Without an initialised process group there is one process: this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

T = TypeVar("T")


#: What torchrun gives each process.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

#: Whether this process takes itself for the only one, see :func:`alone`.
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def is_initialized() -> bool:
    """Whether several processes may be at work together."""
    return not _ALONE.get() and torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 for the main one."""
    return torch_dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return torch_dist.get_world_size() if is_initialized() else 1


def processes_started() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _VARIABLES) else 1


def local_rank() -> int:
    """Number of this process on its machine, as torchrun gives it: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return rank() == 0


class LostProcessError(ValueError):
    """Another process of the run is gone, or has not answered in time."""


class FailedElsewhereError(ValueError):
    """Another process of the run has failed, and this one ends with it; the other one tells the whole."""


def is_loss_of_a_process(error: BaseException) -> bool:
    """Whether ``error`` is how torch tells that an exchange with other processes failed."""
    if not isinstance(error, RuntimeError) or not is_initialized():
        return False
    words = ("gloo", "connection closed", "connection reset", "timed out", "timeout", "nccl", "collective")
    return isinstance(error, torch_dist.DistError) or any(word in str(error).lower() for word in words)


def from_main(function: Callable[[], T]) -> T:
    """Call ``function`` in the main process alone; every process gets what it returned.

    Raises:
        FailedElsewhereError: in the other processes, where ``function`` fails in the main one.
    """
    if world_size() == 1:
        return function()
    told: list[Any] = [None, None]
    error = None
    if is_main():
        try:
            told = [function(), None]
        except Exception as caught:
            error, told = caught, [None, in_one_line(caught)]
    torch_dist.broadcast_object_list(told, src=0)
    if error is not None:
        raise error
    if told[1] is not None:
        raise _failed(0, told[1])
    return told[0]


def in_one_line(error: BaseException) -> str:
    """What ``error`` says, for those who only have to know of it: its first two lines (one may be a heading)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:2]) or type(error).__name__


def _failed(teller: int, words: str) -> FailedElsewhereError:
    return FailedElsewhereError(f"process {rank()} of {world_size()}: process {teller} has failed: {words}")


@contextmanager
def together(device: torch.device | str = "cpu", blame: Callable[[Exception], int] = lambda error: 1) -> Iterator[None]:
    """Leave the block in all processes or in none: where one fails in it, all do.

    Nothing in the block may wait for another process: the one that has failed would not come. At its end all exchange
    one number; alone, nothing happens.

    Args:
        blame: how likely the process that failed is the one at fault, from 1; of several, the likeliest tells.

    Raises:
        FailedElsewhereError: another process has failed; the message has its number and what its error says.
    """
    error = None
    try:
        yield
    except Exception as caught:
        if world_size() == 1:
            raise
        error = caught
    if (teller := _likeliest(0 if error is None else blame(error), device)) is None:
        return
    told = [None if error is None else in_one_line(error)]
    torch_dist.broadcast_object_list(told, src=teller)
    if error is not None and teller == rank():
        raise error
    raise _failed(teller, str(told[0])) from error


def _likeliest(blame: int, device: torch.device | str) -> int | None:
    """Number of the process with the most ``blame``, the lowest of several; None where no process has any."""
    if world_size() == 1:
        return None
    code = torch.tensor(blame * world_size() + world_size() - 1 - rank() if blame else 0, device=device)
    torch_dist.all_reduce(code, torch_dist.ReduceOp.MAX)
    most = int(code.item())
    return world_size() - 1 - most % world_size() if most else None


@contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """Within the block this process is the only one, also for the synchronised batch norms of ``module``.

    For what one process does while the others are elsewhere: nothing in it waits for them.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.SyncBatchNorm)]
    groups = [norm.process_group for norm in norms]
    token = _ALONE.set(True)
    try:
        for norm in norms:
            norm.process_group = torch_dist.GroupMember.NON_GROUP_MEMBER  # of a group without it: it shares nothing
        yield
    finally:
        _ALONE.reset(token)
        for norm, group in zip(norms, groups, strict=True):
            norm.process_group = group


def wait_for_loss() -> None:
    """Wait until another process has gone, or the time of the group is over."""
    with suppress(RuntimeError):
        torch_dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block before the others: what it leaves on the disk, they find."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        torch_dist.barrier()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of ``value`` (any shape, any number type) over the processes, detached; alone, ``value`` itself.

    Losses are divided by this mean of ``num_pos``: with each process's own count the gradient of two processes would
    differ from that of one with the doubled batch.
    """
    value = value.detach()
    if world_size() == 1:
        return value
    total = value.clone() if value.is_floating_point() else value.float()
    torch_dist.all_reduce(total)
    return total / world_size()


def mean_of_numbers(numbers: Mapping[str, float], device: torch.device | str = "cpu") -> dict[str, float]:
    """The mean of each number over the processes, which must all have the same names; alone, the numbers themselves."""
    if world_size() == 1 or not numbers:
        return dict(numbers)
    dtype = torch.float64 if torch.device(device).type == "cpu" else torch.float32
    mean = mean_over_processes(torch.tensor(list(numbers.values()), dtype=dtype, device=device))
    return dict(zip(numbers, mean.tolist(), strict=True))


def any_process(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether ``flag`` is true in at least one process; every process gets the same answer."""
    if world_size() == 1:
        return flag
    total = torch.tensor(int(flag), device=device)
    torch_dist.all_reduce(total)
    return bool(total.item())


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the main one's buffers of ``module``, in place."""
    if world_size() > 1:
        for buffer in module.buffers():
            torch_dist.broadcast(buffer, src=0)


def all_gather(value: T) -> list[T]:
    """``value`` of every process (anything that can be pickled), in the order of their ranks, on every process."""
    if world_size() == 1:
        return [value]
    gathered: list[T | None] = [None] * world_size()
    torch_dist.all_gather_object(gathered, value)
    return gathered  # pyright: ignore[reportReturnType]
