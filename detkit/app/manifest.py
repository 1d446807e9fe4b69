"""``manifest.json``: everything that a run was made with, so that it can be made again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from detkit.app.paths import config_dir
from detkit.app.processes import launcher_mark
from detkit.app.run_folder import can_go_on, config_hash, is_free, read_object
from detkit.config import ConfigError
from detkit.data.datasets.base import DetectionDataset
from detkit.engine.checkpoint import current_versions
from detkit.utils import dist
from detkit.utils.files import atomic_write
from detkit.utils.log import logger

MANIFEST, DIFF = "manifest.json", "uncommitted.diff"

#: Of files that git does not know: data that lie in the checkout may be many.
_SHOWN_UNTRACKED = 5

#: Beside those that every checkpoint names.
_LIBRARIES = ("numpy", "opencv-python-headless", "albumentations", "pycocotools", "hydra-core", "omegaconf")


def write_manifest(folder: Path, config: Mapping[str, Any], data: Mapping[str, str], *, resumed: bool = False) -> None:
    """Write ``manifest.json``, and ``uncommitted.diff`` where files differ from the commit.

    The first start fills the file; each later one is added under ``resumed`` with what may differ.

    Args:
        config: the composed configuration, plain values.
        data: :func:`data_hash` by split.
    """
    here = {**_start(folder), "data": dict(data)}
    stored = read_manifest(folder) if resumed else None
    if stored is None:
        content = {**here, "config_hash": config_hash(config), "seed": config["seed"]}
    else:
        content = {**stored, "resumed": [*stored.get("resumed", []), here]}
    atomic_write(folder / MANIFEST, json.dumps(content, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the run in ``folder`` was made with; None where that was not written down.

    Raises:
        ConfigError: the file is not what a run writes.
    """
    return read_object(folder / MANIFEST)


def check_data(folder: Path, data: Mapping[str, str], allow: Sequence[str] = ()) -> None:
    """Refuse to go on with the run in ``folder`` on other images or annotations than it has seen so far.

    Args:
        data: :func:`data_hash` by split.
        allow: keys that may differ, with all that stands below them.

    Raises:
        ConfigError: a split is another one; the message names it.
    """
    stored = read_manifest(folder) or {}
    before = [stored, *stored.get("resumed", [])][-1].get("data", {})
    changed = [f"data.{split}" for split, digest in data.items() if before.get(split, digest) != digest]
    refused = [key for key in changed if not is_free(key, tuple(allow))]
    if refused:
        lines = [f"{key}: other images or annotations lie there than when the run was begun" for key in refused]
        advice = f"resume.allow=[{','.join(refused)}] lets it go on all the same"
        raise ConfigError("\n  ".join([f"resume: {folder} was run with other data", *lines, advice]))
    for key in changed:
        logger.warning("going on with other images or annotations in %s", key)


def data_hash(dataset: DetectionDataset) -> str:
    """Ten digits for classes, annotations and the names and sizes of the image files; pixels are not read."""
    sha = hashlib.sha256(json.dumps(dataset.categories.to_dict()).encode())
    for truth in dataset.truths:
        file = Path(truth.file)
        size = file.stat().st_size if file.is_file() else -1
        sha.update(f"{truth.image_id},{file.name},{size},{truth.size}".encode())
        for column in (truth.boxes, truth.labels, truth.area, truth.crowd):
            sha.update(column.tobytes())
    return sha.hexdigest()[:10]


def find_restarted(folder: Path, marks: Iterable[str]) -> Path | None:
    """The run that this very torchrun has started before, in ``folder`` or beside it; None where it has saved nothing.

    Args:
        marks: of this torchrun on each machine, see :func:`~detkit.app.processes.launcher_mark`: the main process may
            have been on another one.
    """
    known = set(marks)
    if not known:
        return None
    beside = sorted(folder.parent.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (folder / MANIFEST, *beside):
        if path.is_file() and can_go_on(path.parent) and not known.isdisjoint(_marks(path)):
            return path.parent
    return None


def _marks(path: Path) -> Iterator[str]:
    try:
        content = read_object(path) or {}
    except ConfigError as error:
        logger.warning("passed over: %s", error)
        return
    for start in (content, *content.get("resumed", [])):
        if start.get("torchrun"):
            yield start["torchrun"]


def _start(folder: Path) -> dict[str, Any]:
    """What may change from one start to the next."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git": _git(folder),
        "versions": {**current_versions(), **_library_versions()},
        "platform": platform.platform(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": dist.world_size(),
        "torchrun": launcher_mark(),
    }


def _library_versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # another distribution may bring the module
            continue
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit of this checkout, and where files differ from it the name of the file with the differences."""
    revision, changes = _ask_git("rev-parse", "HEAD"), _ask_git("diff", "HEAD")
    if revision is None:
        return None
    new = (_ask_git("ls-files", "--others", "--exclude-standard") or "").splitlines()
    if changes:
        atomic_write(folder / DIFF, changes + "\n")
    digest = hashlib.sha256(changes.encode()).hexdigest()[:10] if changes else None
    return {"revision": revision, "diff": DIFF if changes else None, "diff_hash": digest, "not_in_git": counted(new)}


def counted(names: Sequence[str]) -> dict[str, Any]:
    """How many there are, and the first few."""
    return {"files": len(names), "first": list(names[:_SHOWN_UNTRACKED])}


def _ask_git(*command: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *command], cwd=config_dir().parent, capture_output=True, text=True, check=True, timeout=30,
            errors="replace",
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
