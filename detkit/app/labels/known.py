"""Which images a checkpoint has trained on: what it says against their labels means nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.app.assemble.foreign import inert, restrain
from detkit.app.assemble.parts import part_of
from detkit.app.assemble.stored import Stored
from detkit.app.run.folder import RunFolder
from detkit.app.run.manifest import data_hash
from detkit.config import ConfigError, build
from detkit.config.validate import plain
from detkit.data.datasets.base import DetectionDataset
from detkit.utils.log import logger


def trained_on(stored: Stored, checkpoint: Path, dataset: DetectionDataset) -> np.ndarray | None:
    """(I,) bool: the images of ``dataset`` that the checkpoint has trained on, whatever they are called; None where its
    training images are not there to be compared."""
    train_set = _training_set(stored, checkpoint)
    return None if train_set is None else same_pictures(_files(dataset), _files(train_set))


def same_pictures(files: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """(I,) bool: which of ``files`` hold the very bytes that one of ``others`` does.

    Files of a size that no other has are not read.
    """
    by_size: dict[int, list[str]] = {}
    for other in others:
        if os.path.isfile(other):
            by_size.setdefault(os.path.getsize(other), []).append(other)
    digests: dict[int, set[bytes]] = {}

    def is_known(file: str) -> bool:
        size = os.path.getsize(file) if os.path.isfile(file) else -1
        alike = by_size.get(size, [])
        if any(os.path.samefile(file, other) for other in alike):
            return True
        if alike and size not in digests:
            digests[size] = {_digest(other) for other in alike}
        return bool(alike) and _digest(file) in digests[size]

    return np.array([is_known(file) for file in files], dtype=bool)


def _training_set(stored: Stored, checkpoint: Path) -> DetectionDataset | None:
    """The images of the training: where it had them, or where the command line says that they are now."""
    begun = plain(inert(stored.checkpoint.config, stored.checkpoint.source))
    said = _digest_of_training(checkpoint)
    reasons = []
    for data in (begun["data"], {**stored.config["data"], "subset": begun["data"].get("subset")}):
        try:
            restrain({"data": data})
            found = part_of(build(data["train"], key="data.train"), data, "train")
        except ConfigError as error:
            reasons.append(str(error).splitlines()[0])
            continue
        if said is not None and data_hash(found) != said:
            reasons.append(f"{found.report.source}: other images or annotations than the training had")
            if not _has_all_files(found):
                continue
            logger.warning("%s; taken as its images all the same", reasons[-1])
        return found
    logger.warning("%s: which images it trained on is not known: %s", checkpoint, reasons[0])
    return None


def _digest_of_training(checkpoint: Path) -> str | None:
    """What the manifest beside ``checkpoint`` says of the training data; None without one."""
    try:
        manifest: Any = RunFolder(checkpoint.parent).manifest() or {}
    except ConfigError as error:
        logger.warning("%s", error)
        return None
    return [manifest, *manifest.get("resumed", [])][-1].get("data", {}).get("train")


def _has_all_files(dataset: DetectionDataset) -> bool:
    return all(os.path.isfile(file) for file in _files(dataset))


def _files(dataset: DetectionDataset) -> list[str]:
    return [truth.file for truth in dataset.truths]


def _digest(file: str) -> bytes:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
