"""Signals and the processes that get them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from detkit.engine.interrupt import StopRequest

ROOT = Path(__file__).parents[2]

RUN = """
import sys
from pathlib import Path
from tests.engine.crashes import SignallingLoader
from tests.engine.stubs import make_trainer
make_trainer(Path(sys.argv[1]), train_loader=SignallingLoader(4)).fit()
"""


def test_uncaught_it_is_the_exit_code_of_the_process(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", RUN, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 143, run.stderr
    assert "stopping after this step; press Ctrl-C again to leave at once without saving" in run.stderr
    assert "Traceback" not in run.stderr
    assert (tmp_path / "last.pt").exists()


def test_outside_the_main_thread_nothing_is_changed() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, handler)]


def test_the_request_tells_which_signal() -> None:
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.signum == signal.SIGTERM
