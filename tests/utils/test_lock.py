"""One at a time in a folder. What other processes do is tested with sweeps."""

from __future__ import annotations

import os
import platform
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from detkit.utils.lock import FolderInUseError, claim


def is_free_for_a_child(folder: Path) -> bool:
    """Whether another process, forked from this one, can claim ``folder``."""
    child = os.fork()
    if child == 0:
        try:
            with claim(folder):
                os._exit(0)
        except FolderInUseError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_second_claim_of_one_process_is_refused_and_leaves_the_first_as_it_is(tmp_path: Path) -> None:
    folder, link = tmp_path / "run", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    with claim(folder):
        for again in (folder, link):
            words = f"{again} is in use by process {os.getpid()} on {platform.node()}, which is this very process"
            with pytest.raises(FolderInUseError, match=f"^{re.escape(words)}$"), claim(again):
                pass
        assert not is_free_for_a_child(folder), "to close the file a second time would have ended the claim"
    assert is_free_for_a_child(folder)
    with claim(link):
        pass


def test_a_worker_that_outlives_a_killed_owner_does_not_hold_the_claim_on(tmp_path: Path) -> None:
    read, write = os.pipe()
    if (owner := os.fork()) == 0:
        with claim(tmp_path):
            if (worker := os.fork()) == 0:
                time.sleep(60)
                os._exit(0)
            os.write(write, str(worker).encode())
            time.sleep(60)
    worker = int(os.read(read, 20))
    try:
        with pytest.raises(FolderInUseError, match=f"process {owner} on "), claim(tmp_path):
            pass
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        with claim(tmp_path):
            os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    claimed = threading.Event()

    def hold() -> None:
        with claim(tmp_path):
            claimed.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    claimed.wait()
    with claim(tmp_path, wait=10.0):
        thread.join()
