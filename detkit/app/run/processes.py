"""One run in several processes, as torchrun starts them."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

import psutil
import torch
import torch.distributed as torch_dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from detkit.config import ConfigError
from detkit.utils import dist

#: Where a process tells the others in the store, as it leaves, that it has failed, and why.
_FAILED = "failed"

#: Seconds between two looks of the main process at who has come.
_MEET_SECONDS = 0.05


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
    if dist.processes_started() == 1:
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
    name = meet(store, rank, world_size, timeout)
    # torchrun keeps its store over a restart, with the addresses of the dead in it (torch 2.14, gloo: it hangs).
    store = torch_dist.PrefixStore(name, store)  # pyright: ignore[reportPrivateImportUsage]
    backend = "nccl" if on_gpu else "gloo"
    torch_dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
    try:
        yield
    except dist.FailedElsewhereError as error:
        _end_with_the_other(str(error))
    except Exception as error:
        if not dist.is_loss_of_a_process(error):
            _tell(store, f"process {rank} has failed: {dist.in_one_line(error)}")
            raise
        if told := _told(store):
            _end_with_the_other(f"process {rank} of {world_size}: {told}")
        raise dist.LostProcessError(
            f"process {rank} of {world_size}: another process of this run is gone, or has not answered "
            f"for {timeout:g} s (process_timeout): {str(error).splitlines()[0]}\n"
            "  torchrun --max-restarts=3 would start all of them again, and they would go on from the last checkpoint"
        ) from error
    torch_dist.destroy_process_group()  # not after an error: it could wait for the lost one


def _end_with_the_other(line: str) -> NoReturn:
    """Say why in one line, and leave after the process that has failed: torchrun ends all when one has ended."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    dist.wait_for_loss()
    sys.exit(1)


def _tell(store: Store, line: str) -> None:
    with suppress(RuntimeError):  # the store is gone, with its process
        store.set(_FAILED, line)


def _told(store: Store) -> str | None:
    """What a process has failed with that does not answer any more; None where nothing is known."""
    with suppress(RuntimeError):
        return store.get(_FAILED).decode() if store.check([_FAILED]) else None
    return None


def meet(store: Store, rank: int, world_size: int, timeout: float) -> str:
    """A name that these very processes agree on, and that none before or after them has.

    torchrun's own count of restarts is no such name: with several machines each counts the failures it has seen itself.
    Here each process asks with a word of its own, so that the main one's answer to a dead process misleads nobody.

    Raises:
        LostProcessError: not all have come within ``timeout`` seconds.
    """
    word = uuid.uuid4().hex
    if rank:
        store.set(f"ask/{rank}", word)
        try:
            store.wait([f"answer/{word}"], datetime.timedelta(seconds=timeout))
        except RuntimeError as error:
            raise dist.LostProcessError(_absent([0], rank, world_size, timeout)) from error
        name = store.get(f"answer/{word}").decode()
        store.set(f"met/{name}/{rank}", "")
        return name
    absent = list(range(1, world_size))
    deadline = time.monotonic() + timeout
    while absent:
        if time.monotonic() > deadline:
            raise dist.LostProcessError(_absent(absent, rank, world_size, timeout))
        for other in absent:
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", word)
        time.sleep(_MEET_SECONDS)
        absent = [other for other in absent if not store.check([f"met/{word}/{other}"])]
    return word


def _absent(absent: Sequence[int], rank: int, world_size: int, timeout: float) -> str:
    others = f"process{'es' * (len(absent) > 1)} {', '.join(map(str, absent))}"
    return f"process {rank} of {world_size}: {others} did not come within {timeout:g} s (process_timeout)"


def launcher_mark() -> str | None:
    """What tells this torchrun from every other, the same when it restarts its processes; None without one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    return f"{run} of process {os.getppid()} on {platform.node()}, which is {_identity(os.getppid())}"


def _identity(process: int) -> str:
    """What ``process`` alone has, its start, whatever the clock says since: numbers of processes are used again."""
    try:
        return f"{hash(psutil.Process(process)):x}"
    except psutil.Error:  # it has just gone
        return "gone"
