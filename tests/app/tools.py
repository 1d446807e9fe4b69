"""Tools started inside the test's own process: the same command line, without the seconds of a new interpreter."""

import sys

from detkit.app import train
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
