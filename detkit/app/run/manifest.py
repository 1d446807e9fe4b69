"""``manifest.json``: everything that a run was made with, so that it can be made again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from detkit.app.assemble.identity import config_hash, is_free
from detkit.app.cli.paths import config_dir
from detkit.app.run.processes import launcher_mark
from detkit.config import ConfigError
from detkit.data.datasets.base import DetectionDataset
from detkit.engine.state.checkpoint import current_versions
from detkit.utils import dist
from detkit.utils.log import logger

#: Of files that git does not know: data that lie in the checkout may be many.
_SHOWN_UNTRACKED = 5

#: Beside those that every checkpoint names.
_LIBRARIES = ("numpy", "opencv-python-headless", "albumentations", "pycocotools", "hydra-core", "omegaconf")


def new_manifest(
    config: Mapping[str, Any], data: Mapping[str, str], diff_name: str
) -> tuple[dict[str, Any], str | None]:
    """What a run that begins is made with.

    Args:
        config: the composed configuration, plain values.
        data: :func:`data_hash` by split.
        diff_name: of the file for what differs from the commit.

    Returns:
        plain values, and what differs from the commit, None where nothing does.
    """
    here, diff = _start(data, diff_name)
    return {**here, "config_hash": config_hash(config), "seed": config["seed"]}, diff


def continued(stored: Mapping[str, Any], data: Mapping[str, str], diff_name: str) -> tuple[dict[str, Any], str | None]:
    """As :func:`new_manifest`, of a run that goes on: what is ``stored`` of it, and what this start is made with."""
    here, diff = _start(data, diff_name)
    return {**stored, "resumed": [*stored.get("resumed", []), here]}, diff


def refuse_other_data(
    stored: Mapping[str, Any], data: Mapping[str, str], allow: Sequence[str] = (), name: str = "the run"
) -> None:
    """Refuse to go on with a run on other images or annotations than it has seen so far.

    Args:
        stored: its manifest.
        data: :func:`data_hash` by split.
        allow: keys that may differ, with all that stands below them.
        name: of the run, for the message.

    Raises:
        ConfigError: a split is another one; the message names it.
    """
    before = data_before(stored)
    changed = [f"data.{split}" for split, digest in data.items() if before.get(split, digest) != digest]
    refused = [key for key in changed if not is_free(key, tuple(allow))]
    if refused:
        lines = [f"{key}: other images or annotations lie there than when the run was begun" for key in refused]
        advice = f"resume.allow=[{','.join(refused)}] lets it go on all the same"
        raise ConfigError("\n  ".join([f"resume: {name} was run with other data", *lines, advice]))
    for key in changed:
        logger.warning("going on with other images or annotations in %s", key)


def data_before(stored: Mapping[str, Any]) -> Mapping[str, str]:
    """:func:`data_hash` by split of what the run with the manifest ``stored`` has seen last."""
    return [stored, *stored.get("resumed", [])][-1].get("data", {})


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


def _start(data: Mapping[str, str], diff_name: str) -> tuple[dict[str, Any], str | None]:
    """What may change from one start to the next, and what differs from the commit."""
    git, diff = _git(diff_name)
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git": git,
        "versions": {**current_versions(), **_library_versions()},
        "platform": platform.platform(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": dist.world_size(),
        "torchrun": launcher_mark(),
        "data": dict(data),
    }
    return start, diff


def _library_versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # another distribution may bring the module
            continue
    return found


def _git(diff_name: str) -> tuple[dict[str, Any] | None, str | None]:
    """The commit of this checkout, with ``diff_name`` where files differ from it, and the differences."""
    revision, changes = _ask_git("rev-parse", "HEAD"), _ask_git("diff", "HEAD")
    if revision is None:
        return None, None
    new = (_ask_git("ls-files", "--others", "--exclude-standard") or "").splitlines()
    digest = hashlib.sha256(changes.encode()).hexdigest()[:10] if changes else None
    commit = {"revision": revision, "diff": diff_name if changes else None, "diff_hash": digest}
    return {**commit, "not_in_git": counted(new)}, changes or None


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
