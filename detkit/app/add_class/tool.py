"""``tools/add_class.py``: classes that a trained detector learns from a few examples, in a copy of the checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import rich
from omegaconf import DictConfig

from detkit.app.add_class.found import check_examples, describe, grown, look_at, new_categories, table_of, weights_of
from detkit.app.assemble.schema import AddClassOptions
from detkit.app.assemble.stored import eval_loader, load_stored, open_data
from detkit.app.cli.entry import run_tool
from detkit.app.run.beside import folder_beside, path_of_copy
from detkit.app.run.next_command import tell_prediction_with
from detkit.engine.state.checkpoint import save_checkpoint
from detkit.models.cosine_regions import CosineRegions
from detkit.utils.files import atomic_write, output_folder
from detkit.utils.log import logger, set_up_logging
from detkit.utils.progress import track

#: In the folder of the grown copy: what was added.
ADDED = "added.json"


def main() -> None:
    """The command line."""
    run_tool(run, "add_class")


def run(cfg: DictConfig, _: Path) -> None:
    """Add the classes of ``cfg.data`` to ``cfg.checkpoint``; a grown copy and added.json go to ``cfg.output``."""
    set_up_logging()
    options, stored = load_stored(cfg, AddClassOptions)
    regions = CosineRegions.of(stored.detector)
    path = Path(options.checkpoint)
    wanted = options.output or folder_beside(path, "added", options.split)
    target = path_of_copy(path, wanted, ADDED)
    checkpoint, known = stored.checkpoint, stored.checkpoint.categories
    dataset = open_data(stored, options.split)
    new = new_categories(known, dataset.categories, options.classes, f"data.{options.split}")
    loader = eval_loader(stored, dataset)
    labels = [dataset.categories.names.index(name) for name in new.names]
    batches = track(loader, len(loader), "looking at examples")
    examples = look_at(regions, batches, labels, options.num_examples, stored.device)
    check_examples(examples, new, dataset.report.source)
    weight = regions.layer.weight.detach().cpu()
    added = weights_of(examples, weight, options.reserve)
    rows = describe(examples, new, added, known, weight)
    copy = grown(checkpoint, regions, stored.config["model"], new, added)
    with output_folder(wanted) as folder:
        atomic_write(folder / ADDED, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        save_checkpoint(target, copy)
    if checkpoint.calibration is not None:
        logger.warning("%s: its thresholds know nothing of these classes: calibrate the copy anew", path)
    rich.print(table_of(rows))
    rich.print(f"{len(known)} classes have become {len(copy.categories)}")
    tell_prediction_with(target, dataset)


if __name__ == "__main__":
    main()
