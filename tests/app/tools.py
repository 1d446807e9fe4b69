"""Tools started inside the test's own process: the same command line, without the seconds of a new interpreter."""

import contextlib
import resource
import sys

from detkit.app import train
from detkit.engine.state.checkpoint import load_checkpoint
from tests.app.test_configs import composed


def call(main, monkeypatch, capsys, *arguments, code=0):
    """Run ``main`` as with ``arguments`` on the command line; what it printed, and it must end with ``code``."""
    monkeypatch.setattr(sys, "argv", ["tool.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    ended = 0
    try:
        main()
    except SystemExit as stop:
        ended = stop.code
    captured = capsys.readouterr()
    output = captured.out + captured.err
    assert ended == code, output
    return output


@contextlib.contextmanager
def largest_file(num_bytes):
    """Within the block no file grows beyond ``num_bytes``, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def trainer_in(folder, *overrides):
    """The trainer of four steps in a new ``folder``, which saves after two of them."""
    cfg = composed(
        *overrides, "device=cpu", "threads=1", "callbacks={}", "data.loader.train.batch_size=2", "trainer.steps=4",
        "trainer.save_every=2",
    )  # fmt: skip
    folder.mkdir()
    trainer, _ = train.build_trainer(cfg, folder)
    return trainer


def gone_on(folder, again):
    """The checkpoints of a run in ``folder`` at its half and end, and at its end after ``again`` went on from the half."""
    half = load_checkpoint(folder / "previous.pt")
    assert half.step == 2
    again.restore(half)
    again.fit()
    return half, load_checkpoint(folder / "last.pt"), load_checkpoint(again.run_dir / "last.pt")


def train_briefly(folder, *overrides):
    """A run of one step in ``folder``, as far as a checkpoint and its configuration go; the checkpoint."""
    cfg = composed(
        "experiment=quickstart", "device=cpu", "callbacks={}", "trainer.steps=1", f"data.root={folder / 'shapes'}",
        "data.train.num_train=4", "data.train.num_val=2", "data.train.image_size=64", "data.loader.train.batch_size=2",
        "data.loader.train.num_workers=0", "data.loader.val.num_workers=0", *overrides,
    )  # fmt: skip
    trainer, _ = train.build_trainer(cfg, folder)
    trainer.fit()
    return folder / "last.pt"
