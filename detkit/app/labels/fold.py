"""The training of one fold, as a job of the sweep engine: ``python -m detkit.app.labels.fold FOLDER``.

The folder holds the whole configuration; a training that was stopped there goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

from detkit.app.cli.components import load_components
from detkit.app.cli.failure import told_plainly
from detkit.app.run.folder import RunFolder
from detkit.app.sweep.process import stop_with_the_sweep
from detkit.app.train import train_in
from detkit.data.workers import worker_deaths_explained
from detkit.utils.memory import keep_freed_memory

#: The configuration, plain values.
RECIPE = "recipe.yaml"


def main() -> None:
    """The command line."""
    stop_with_the_sweep()
    keep_freed_memory()
    folder = Path(sys.argv[1])
    with told_plainly(), worker_deaths_explained():
        load_components()
        cfg = OmegaConf.load(folder / RECIPE)
        if RunFolder(folder).can_go_on:
            cfg.resume.path = str(folder)
        train_in(cfg, folder)  # pyright: ignore[reportArgumentType] - a mapping was written


if __name__ == "__main__":
    main()
