"""Pictures in folders, for the formats whose annotations do not say which files there are or how large they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detkit.data.datasets.checks import Findings, Policy
from detkit.data.decode import ImageError, read_size

#: Endings of the formats that decode.py reads.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".jp2")


def list_images(folder: Path) -> dict[str, Path]:
    """File name without ending -> path, for the pictures directly in ``folder``, in the order of the names.

    Raises:
        ValueError: there is no such folder, or two pictures differ in their ending only.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if path.suffix.lower() in IMAGE_ENDINGS:
            if path.stem in found:
                raise ValueError(f"{folder}: {found[path.stem].name} and {name} would have the same annotations")
            found[path.stem] = path
    return found


def read_sizes(findings: Findings, files: Sequence[Path], policy: Policy) -> dict[Path, tuple[int, int]]:
    """(h, w) of every picture in ``files``, from its header; those that cannot be read are refused or left out.

    Raises:
        ValueError: some cannot be read, and the ``policy`` is "error".
    """
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[str] = []
    for file in files:
        try:
            sizes[file] = read_size(str(file))
        except ImageError as error:
            unreadable.append(str(error))
    findings.refuse(
        "unreadable images", range(len(unreadable)), unreadable.__getitem__, policy=policy, option="on_missing"
    )
    return sizes
