"""One run in several processes, as torchrun starts them."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as torch_dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from detkit.config import ConfigError
from detkit.utils import dist

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def process_group(device: str, timeout: float) -> Iterator[None]:
    """Join the other processes where torchrun has started several; elsewhere nothing happens.

    Args:
        device: as configured; "auto" and "cuda" give each process of a machine a GPU of its own.
        timeout: seconds to wait for another process.

    Raises:
        ConfigError: a machine has more processes than GPUs.
        LostProcessError: another process is gone or does not answer.
    """
    if not all(name in os.environ for name in _VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        local, count = dist.local_rank(), torch.cuda.device_count()
        if local >= count:
            raise ConfigError(f"--nproc-per-node: process {local + 1} of this machine has no GPU; there are {count}")
        torch.cuda.set_device(local)
    wait = datetime.timedelta(seconds=timeout)
    store, rank, world_size = next(rendezvous("env://", timeout=wait))
    # torchrun keeps its store over a restart, with the addresses of the dead in it (torch 2.14, gloo: it hangs).
    store = torch_dist.PrefixStore(f"attempt {_attempt()}", store)  # pyright: ignore[reportPrivateImportUsage]
    backend = "nccl" if on_gpu else "gloo"
    torch_dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
    try:
        yield
    except RuntimeError as error:
        if not dist.is_loss_of_a_process(error):
            raise
        raise dist.LostProcessError(
            f"process {dist.rank()} of {dist.world_size()}: another process of this run is gone, or has not answered "
            f"for {timeout:g} s (process_timeout): {str(error).splitlines()[0]}\n"
            "  torchrun --max-restarts=3 would start all of them again, and they would go on from the last checkpoint"
        ) from error
    torch_dist.destroy_process_group()  # not after an error: it could wait for the lost one


def with_sync_bn(detector: nn.Module, device: torch.device) -> nn.Module:
    """``detector`` with batch norms that share their statistics among the processes; alone, as it is.

    Raises:
        ConfigError: torch can do that on GPUs alone.
    """
    if dist.world_size() == 1:
        return detector
    if device.type != "cuda":
        raise ConfigError(f"sync_bn: works on GPUs only, and the device is {device}")
    return nn.SyncBatchNorm.convert_sync_batchnorm(detector)


def launcher_mark() -> str | None:
    """What tells this torchrun from every other, the same when it restarts its processes; None without one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} of process {os.getppid()} on {platform.node()}"


def is_restart() -> bool:
    """Whether torchrun has started these processes anew after a failure."""
    return _attempt() != "0"


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
