"""``tools/labels.py``: labels that are likely wrong, and the file with those corrected that a person has accepted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rich
from omegaconf import DictConfig
from rich.text import Text

from detkit.app.assemble.exported import is_exported
from detkit.app.assemble.outputs import check_new
from detkit.app.assemble.schema import LabelsOptions
from detkit.app.assemble.stored import Stored, eval_loader, load_stored, open_split, with_weights_of
from detkit.app.cli.entry import run_tool
from detkit.app.labels.corrections import as_csv, correct, num_decided, read_accepted, read_coco
from detkit.app.labels.folds import train_folds
from detkit.app.labels.found import LabelReport, LookedAt, look
from detkit.app.labels.known import Known, same_pictures, trained_on
from detkit.app.labels.page import labels_page
from detkit.app.labels.views import Views
from detkit.app.run.beside import folder_beside, refuse_run
from detkit.app.run.next_command import path_word, tell_next, word
from detkit.config import ConfigError, validate
from detkit.config.ranges import check_range
from detkit.data import CocoDataset
from detkit.data.datasets.base import DetectionDataset
from detkit.data.subset import ImagesOf, Subset
from detkit.data.writers import coco_content, relative_names
from detkit.utils.commands import command
from detkit.utils.files import atomic_write, output_folder
from detkit.utils.log import logger, set_up_logging
from detkit.utils.progress import track

#: In the folder of the report: the table that a person edits, the numbers, the page, the file with all proposals, and
#: the labels as they are where the data set has no file in COCO's form.
TABLE, NUMBERS, PAGE, PROPOSED, AS_IS = "findings.csv", "labels.json", "labels.html", "corrected.json", "as_is.json"

#: Beside the table: the file with its accepted rows.
ACCEPTED = "accepted.json"


def main() -> None:
    """The command line."""
    run_tool(run, "labels")


def run(cfg: DictConfig, _: Path) -> None:
    """Look for wrong labels in the data of ``cfg.checkpoint``, or apply the edited table ``cfg.apply``."""
    set_up_logging()
    if (cfg.get("checkpoint") is None) == (cfg.get("apply") is None):
        raise ConfigError("checkpoint: one is wanted, a best.pt or last.pt; or apply, an edited findings.csv")
    if cfg.get("apply") is not None:
        validate(cfg, LabelsOptions)
        apply(Path(cfg.apply), None if cfg.output is None else Path(cfg.output))
        return
    if is_exported(cfg.checkpoint):
        raise ConfigError(f"checkpoint: {cfg.checkpoint} is an exported file, which has no losses; give a best.pt")
    options, stored = load_stored(cfg, LabelsOptions)
    _check(options)
    refuse_run(options.output)
    find(options, stored)


def find(options: LabelsOptions, stored: Stored) -> LabelReport:
    """Write table, page, numbers and the proposed annotations.

    Raises:
        ConfigError: the detector has trained on every image, or the folder holds an edited table.
    """
    assert options.checkpoint is not None
    checkpoint = Path(options.checkpoint)
    split = options.split or ("val" if options.folds is None else "train")
    whole = {**stored.config["data"], "subset": None}  # what is held out is for the folds to say
    stored = dataclasses.replace(stored, config={**stored.config, "data": whole})
    dataset, _ = open_split(stored, split)
    with output_folder(options.output or folder_beside(checkpoint, "labels", split)) as folder:
        _refuse_edited(folder / TABLE)
        if options.folds is None:
            places = _not_known(trained_on(stored, checkpoint, dataset), checkpoint, split, dataset)
            looked = _look(stored, dataset, places, options)
        else:
            looked = chain.from_iterable(_by_folds(stored, dataset, folder, options))
        images = sorted(looked, key=lambda image: image.truth.image_id)
        report = LabelReport.of(dataset.categories, images, options.least, len(dataset) - len(images))
        by = f"{options.folds} folds of the recipe of {checkpoint}" if options.folds else str(checkpoint)
        _write(report, dataset, f"{by} on data.{split}", split, folder, options.num_pictures)
    rich.print(report.table())
    rich.print("report with pictures:", Text(str(folder / PAGE), "bold"))
    rich.print("write yes into the column accept of", Text(str(folder / TABLE), "bold"), "where you agree")
    tell_next("labels", path_word("apply", folder / TABLE))
    return report


def apply(table: Path, output: Path | None) -> Path:
    """Write the annotations with the accepted rows of ``table`` corrected; the file that they are about stays.

    Raises:
        ConfigError: the table or the annotations are not what the tool wrote and a person edited; ``output`` is there.
    """
    accepted, count = read_accepted(table)
    if not accepted:
        raise ConfigError(f"apply: {table}: none of its {count} rows is accepted: write yes into the column accept")
    numbers = _numbers(table.with_name(NUMBERS))
    annotations = Path(numbers["annotations"])
    if _digest(annotations) != numbers["sha256"]:
        raise ConfigError(f"apply: {annotations}: has changed since {table.with_name(NUMBERS)} was written")
    given, output = output, output or table.with_name(ACCEPTED)
    if output.exists() and output.samefile(annotations):
        raise ConfigError(f"output: {output} is the file that is corrected, which stays as it is; choose another")
    if given is not None:
        check_new(given)
    with output_folder(output.parent):
        atomic_write(output, json.dumps(correct(read_coco(annotations), accepted)))
    rich.print(f"{len(accepted)} of {count} findings are corrected in", Text(str(output), "bold"))
    for line in _how_to_use(output, numbers):
        rich.get_console().print(Text(line), soft_wrap=True)
    return output


def _how_to_use(output: Path, numbers: Mapping[str, Any]) -> Iterator[str]:
    """What a command line says to have the labels in ``output`` in place of those that the table was about."""
    if (split := numbers["split"]) is None:  # an older table
        return
    words = [word(f"data.{split}.annotations", str(output.absolute()))]
    folder, other = Path(numbers["annotations"]).parent, "val" if split == "train" else "train"
    if (pictures := numbers["pictures"]) is not None:
        whole = ["data=coco", word("data.root", str(folder)), word(f"data.{split}.images", pictures)]
        words = [*whole, *words]
    yield f"to {'train on it' if split == 'train' else 'measure by it'}: {' '.join(map(shlex.quote, words))}"
    if pictures is not None and not (folder / f"{other}.json").is_file():
        yield (
            f"data.{other} is wanted in COCO's form as well, where it is used: "
            f"{command('convert')} ... split={other} to=coco output=NEW writes it, and data.root=NEW reads it"
        )


def _by_folds(
    stored: Stored, dataset: DetectionDataset, folder: Path, options: LabelsOptions
) -> Iterator[Iterator[LookedAt]]:
    """Of each fold what a detector that was trained on the others says of it."""
    assert options.folds is not None
    subsets = [
        Subset(fold=i, folds=options.folds, group=options.group, seed=options.seed) for i in range(options.folds)
    ]
    try:
        fold = subsets[0].folds_of(dataset)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    files = np.array([truth.file for truth in dataset.truths])
    for i, checkpoint in enumerate(train_folds(stored, dataset, subsets, folder / "folds", options.slots)):
        places = np.flatnonzero(fold == i)
        twins = same_pictures(files[places].tolist(), files[fold != i].tolist())
        if twins.any():
            logger.warning("fold %d: %d images are in another fold too, and left out", i + 1, int(twins.sum()))
        yield _look(with_weights_of(stored, checkpoint), dataset, places[~twins], options)


def _look(stored: Stored, dataset: DetectionDataset, places: np.ndarray, options: LabelsOptions) -> Iterator[LookedAt]:
    if not len(places):
        return iter(())
    part = ImagesOf(dataset, places)
    loader = eval_loader(stored, part)
    batches = track(loader, len(loader), "looking at labels")
    precision = options.precision or stored.config["trainer"]["precision"]
    views = Views.of(stored.config, options.mirror, options.enlarge)
    return look(
        stored.detector, stored.device, batches, part.truths, dataset.categories, precision, options.least, views
    )


def _not_known(known: Known, checkpoint: Path, split: str, dataset: DetectionDataset) -> np.ndarray:
    """The images that the checkpoint has not trained on.

    Raises:
        ConfigError: there is none.
    """
    if known.images.all():
        raise ConfigError(
            f"split: {checkpoint} has trained on all {len(dataset)} images of data.{split} and knows their labels; "
            "folds=5 trains detectors that do not"
        )
    if split == "train" and not known.is_all:
        raise ConfigError(f"split: which images of data.train {checkpoint} has trained on is not known; folds=5")
    if count := known.images.sum():
        logger.warning("%d of %d images are left out: %s has trained on them", count, len(dataset), checkpoint)
    return np.flatnonzero(~known.images)


def _write(
    report: LabelReport, dataset: DetectionDataset, source: str, split: str, folder: Path, num_pictures: int
) -> None:
    annotations = folder / AS_IS if dataset.coco_file is None else Path(dataset.coco_file)
    if dataset.coco_file is None:
        everything = range(len(dataset))
        atomic_write(annotations, json.dumps(coco_content(dataset, relative_names(dataset), everything)))
    corrections = [f.correction(dataset.categories, f.truth.file) for f in report.findings]
    atomic_write(folder / PROPOSED, json.dumps(correct(read_coco(annotations), corrections, scored=True)))
    pictures = None if isinstance(dataset, CocoDataset) else _folder_of_pictures(dataset, annotations)
    numbers = report.to_dict(source, split, pictures, os.path.abspath(annotations), _digest(annotations))
    atomic_write(folder / NUMBERS, json.dumps(numbers, indent=1) + "\n")
    atomic_write(folder / PAGE, labels_page(report, dataset, source, TABLE, num_pictures))
    atomic_write(folder / TABLE, as_csv(corrections))


def _folder_of_pictures(dataset: DetectionDataset, annotations: Path) -> str:
    """What the file names in ``annotations`` are relative to."""
    truth = dataset.truths[0]
    name = next(one["file_name"] for one in read_coco(annotations)["images"] if one["id"] == truth.image_id)
    return str(Path(os.path.abspath(truth.file)).parents[len(PurePosixPath(name).parts) - 1])


def _refuse_edited(table: Path) -> None:
    """Refuse to write over what a person has decided.

    Raises:
        ConfigError: as it says.
    """
    if table.is_file() and (count := num_decided(table)):
        raise ConfigError(f"output: {table} has {count} rows that someone has decided on; choose another folder")


def _check(options: LabelsOptions) -> None:
    check_range("least", options.least, 0, 1)
    check_range("num_pictures", options.num_pictures, 0)
    check_range("slots", options.slots, 1)
    check_range("folds", options.folds, 2)
    check_range("seed", options.seed, 0)
    check_range("enlarge", options.enlarge, 0.1, 4)
    if options.folds is not None and options.split == "val":
        raise ConfigError("folds: are made of data.train, not of split=val, which needs none")
    if options.folds is None and options.group is not None:
        raise ConfigError("group: says which images stay together in a fold, and folds says how many there are")


def _numbers(path: Path) -> dict[str, Any]:
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        return {key: numbers[key] for key in ("annotations", "sha256")} | {
            key: numbers.get(key) for key in ("split", "pictures")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"apply: {path}: does not tell which annotations the table is about; it belongs beside it"
        ) from error


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"apply: {path}: {error.strerror}") from error


if __name__ == "__main__":
    main()
