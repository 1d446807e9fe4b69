"""Processes that load images: they die, hang and end, and the images that they had in hand are named."""

import itertools
import multiprocessing
import os
import re
import signal
import time

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from detkit.data.collate import Refusal, unpack
from detkit.data.loader import Place
from detkit.data.workers import WorkerError, worker_deaths_explained
from tests.data.loaders import UPRIGHT, Broken, assert_same, evaluate, no_children_left, take, train

pytestmark = pytest.mark.usefixtures("no_orphans")


def test_a_worker_that_dies_ends_the_run_with_the_image_s_name(data):
    start = time.monotonic()
    with pytest.raises(WorkerError, match=rf"loading a batch failed: .*[Ww]orker.*; images being loaded: \S*{UPRIGHT}"):
        take(train(data, [Broken("die")], num_workers=1, timeout=30), 3)
    assert time.monotonic() - start < 20
    assert no_children_left()


def test_a_worker_that_hangs_ends_the_run_within_the_timeout(data):
    start = time.monotonic()
    with pytest.raises(WorkerError, match=rf"timed out after 1\S* seconds; images being loaded: \S*{UPRIGHT}"):
        take(train(data, [Broken("hang")], num_workers=1, timeout=1), 3)
    assert time.monotonic() - start < 20
    assert no_children_left()


def test_only_images_at_work_are_named(data):
    with pytest.raises(WorkerError, match="timed out") as caught:
        take(train(data, [Broken("hang")], batch_size=1, num_workers=2, timeout=1), 12)
    files = str(caught.value).partition("images being loaded: ")[2].split(", ")
    assert files
    assert all(re.search(UPRIGHT, file) for file in files)


@pytest.mark.parametrize("how", ["value", "raise", "die"])
def test_after_a_failure_no_worker_is_left_even_while_the_loader_lives(data, how):
    loader = evaluate(data, [Broken(how)], num_workers=2, timeout=30)
    for _ in range(2):  # and the next evaluation starts with new ones
        with pytest.raises((ValueError, KeyError)):
            list(loader)
        assert no_children_left()


def test_a_worker_s_death_is_told_wherever_the_main_process_is(data):
    """torch raises it from a signal handler: during a training step, or in the middle of a save."""
    iterator = train(data, num_workers=1).iterate()
    next(iterator)
    (worker,) = multiprocessing.active_children()

    @worker_deaths_explained()
    def work():
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(500):
            time.sleep(0.01)

    with pytest.raises(WorkerError, match=r"^loading a batch failed: DataLoader worker .* killed by signal"):
        work()
    with pytest.raises(RuntimeError, match=r"^another$"), worker_deaths_explained():
        raise RuntimeError("another")


def test_workers_end_with_the_loader(data):
    iterator = train(data, num_workers=2).iterate()
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    assert no_children_left()


def test_workers_leave_the_interrupt_to_the_main_process(data):
    iterator = train(data, num_workers=1).iterate()
    next(iterator)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(itertools.islice(iterator, 10))) == 10
    assert worker.is_alive()
    iterator.close()


def test_a_parcel_survives_the_thread_that_pins_it(data, monkeypatch):
    """What DataLoader does to a parcel where a GPU is at hand, with the one CUDA call taken out."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *device: self.clone())
    workers = evaluate(data, batch_size=12)._workers
    parcel = workers.collate([workers.source[Place(0, i, 0)] for i in range(12)])
    (expected,) = evaluate(data, batch_size=12)
    assert_same([unpack(pin_memory(parcel))], [expected])
    refusal = pin_memory(Refusal(ValueError("x")))
    assert isinstance(refusal, Refusal)
    assert str(refusal.error) == "x"


@pytest.mark.parametrize("how", ["full", "shared memory"])
def test_a_full_disk_in_a_worker_is_one_line(data, how):
    """The first as the system tells it, the second as torch does; where in the code is no help."""
    with pytest.raises(WorkerError, match="No space left on device") as caught:
        take(train(data, [Broken(how)], num_workers=1, timeout=30), 3)
    assert str(caught.value).startswith("loading a batch failed: ")
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
