"""Where the configuration files are: in the checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """The folder ``configs`` that belongs to this installation.

    Raises:
        FileNotFoundError: the installation has none.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / "train.yaml").is_file() or (folder / "model").is_dir():
            return folder
    raise FileNotFoundError(f"no configs beside or inside {package}; install detkit from its repository")
