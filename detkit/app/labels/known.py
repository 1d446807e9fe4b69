"""Which images a checkpoint has trained on: what it says against their labels means nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit.app.assemble.foreign import inert, restrain
from detkit.app.assemble.init_from import is_checkpoint
from detkit.app.assemble.parts import part_of
from detkit.app.assemble.stored import Stored
from detkit.app.run.folder import RunFolder
from detkit.app.run.manifest import data_hash
from detkit.config import ConfigError, build
from detkit.config.validate import plain
from detkit.data.datasets.base import DetectionDataset
from detkit.engine.state.checkpoint import CheckpointError, load_checkpoint
from detkit.utils.log import logger


class Known(NamedTuple):
    """Of a data set the ``images`` (I,) bool that a checkpoint has trained on, whatever they are called.

    ``is_all``: the images of every training behind it were there to be compared.
    """

    images: np.ndarray
    is_all: bool


def trained_on(stored: Stored, checkpoint: Path, dataset: DetectionDataset) -> Known:
    """What ``checkpoint`` knows of ``dataset``, by its own training or by those that it started from."""
    begun = plain(inert(stored.checkpoint.config, stored.checkpoint.source))
    moved = {**stored.config["data"], "subset": begun["data"].get("subset")}
    own = _training_set(checkpoint, [begun["data"], moved])
    return _known(dataset, [own, *_sets_behind(begun.get("init_from"))])


def known_at_start(init_from: str | None, dataset: DetectionDataset) -> Known:
    """What the weights that a training starts from know of ``dataset``; those of another library nothing."""
    return _known(dataset, list(_sets_behind(init_from)))


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


def _known(dataset: DetectionDataset, train_sets: Sequence[DetectionDataset | None]) -> Known:
    files = [file for train_set in train_sets if train_set is not None for file in _files(train_set)]
    return Known(same_pictures(_files(dataset), files), all(train_set is not None for train_set in train_sets))


def _sets_behind(init_from: str | None) -> Iterator[DetectionDataset | None]:
    """The images of the training that wrote ``init_from``, of that which it started from, and so on; None for what is
    not known, where it ends."""
    seen = set()
    while init_from is not None and is_checkpoint(init_from) and init_from not in seen:
        seen.add(init_from)
        try:
            checkpoint = load_checkpoint(init_from)
            config = plain(inert(checkpoint.config, init_from))
            if "data" not in config:
                raise ConfigError(f"{init_from} has no configuration")
        except (CheckpointError, ConfigError) as error:
            logger.warning("which images init_from=%s trained on is not known: %s", init_from, error)
            yield None
            return
        if checkpoint.step > 0:  # what import.py writes has trained on nothing here
            yield _training_set(Path(init_from), [config["data"]])
        init_from = config.get("init_from")


def _training_set(checkpoint: Path, sections: Sequence[dict[str, Any]]) -> DetectionDataset | None:
    """The images of the training that wrote ``checkpoint``, by the first of the ``data`` ``sections`` that has them."""
    said = _digest_of_training(checkpoint)
    reasons = []
    for data in sections:
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
