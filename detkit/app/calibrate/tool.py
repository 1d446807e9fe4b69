"""``tools/calibrate.py``: a threshold for each class that keeps a promise, in a copy of the checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import rich
from omegaconf import DictConfig
from rich.text import Text

from detkit.app.assemble.schema import CalibrateOptions, CalibrationTarget
from detkit.app.assemble.stored import load_stored, open_split
from detkit.app.calibrate.found import RightCosines, calibrate, judged_images
from detkit.app.calibrate.page import calibration_page
from detkit.app.cli.entry import run_tool
from detkit.app.run.beside import folder_beside, path_of_copy
from detkit.app.run.next_command import tell_prediction_with
from detkit.config import ConfigError
from detkit.config.ranges import check_range
from detkit.engine.state.checkpoint import save_checkpoint
from detkit.evaluation.thresholds import Aim
from detkit.evaluation.unknown import LeastCosines
from detkit.utils.files import atomic_write, output_folder
from detkit.utils.log import logger, set_up_logging
from detkit.utils.progress import track

#: In the folder of the calibration, beside the copy.
NUMBERS, PAGE = "calibration.json", "calibration.html"


def main() -> None:
    """The command line."""
    run_tool(run, "calibrate")


def run(cfg: DictConfig, _: Path) -> None:
    """Calibrate ``cfg.checkpoint`` on ``cfg.split``; a copy with thresholds and the report go to ``cfg.output``."""
    set_up_logging()
    options, stored = load_stored(cfg, CalibrateOptions)
    aim = aim_of(options)
    checkpoint = Path(options.checkpoint)
    wanted = options.output or folder_beside(checkpoint, "calibration", options.split)
    copy = path_of_copy(checkpoint, wanted, NUMBERS)
    cosines = None if options.unknown is None else RightCosines(stored.detector)
    dataset, loader = open_split(stored, options.split)
    if options.split == "train":
        logger.warning("split=train: the detector knows these images, and for others the promise does not hold")
    source = f"{checkpoint} on data.{options.split}"
    precision = options.precision or stored.config["trainer"]["precision"]
    with output_folder(wanted) as folder:
        detector, views = stored.bare(options.tta)
        batches = track(loader, len(loader), "calibrating")
        images = judged_images(detector, stored.device, batches, dataset, precision, cosines)
        found = calibrate(images, dataset.categories.names, aim, options.scores, options.seed)
        found = dataclasses.replace(found, views=views)
        if cosines is not None and options.unknown is not None:
            least = cosines.least(len(dataset.categories), options.unknown)
            found = dataclasses.replace(found, unknown=least)
        atomic_write(folder / NUMBERS, json.dumps(found.to_dict(source), indent=1) + "\n")
        atomic_write(folder / PAGE, calibration_page(found, source))
        save_checkpoint(copy, dataclasses.replace(stored.checkpoint, calibration=found.to_checkpoint()))
    rich.print(found.table())
    before, after = found.errors()
    mapped = "" if after is None else f", {after:.3f} after scores={options.scores}"
    rich.print(f"expected calibration error of the scores: {before:.3f}{mapped}")
    if found.unknown is not None:
        rich.print(_of_unknown(found.unknown))
    rich.print("report:", Text(str(folder / PAGE), "bold"))
    tell_prediction_with(copy, dataset)


def _of_unknown(least: LeastCosines) -> str:
    low, high = float(least.values.min()), float(least.values.max())
    return (
        f"unknown below cosines of {low:.3f} to {high:.3f}, of known objects {least.share:g} at most; "
        f"{int(least.own.sum())} of {len(least.own)} classes have their own"
    )


def aim_of(options: CalibrateOptions) -> Aim:
    """What the options ask for.

    Raises:
        ConfigError: none or several targets, or a number out of range.
    """
    target = options.target if isinstance(options.target, dict) else dataclasses.asdict(options.target)
    given = {name: value for name, value in target.items() if value is not None}
    names = [field.name for field in dataclasses.fields(CalibrationTarget)]
    if len(given) != 1:
        raise ConfigError(f"target: one of {', '.join(names)} is wanted, like target.precision=0.9")
    ((name, value),) = given.items()
    risk: Any = name  # the three fields are the three risks
    check_range(f"target.{risk}", value, 0, 1)
    level = value if risk == "false_alarms" else 1 - value
    if not 0 < level < 1:
        raise ConfigError(f"target.{risk}: must lie between 0 and 1, not {value:g}: no number of images proves that")
    check_range("delta", options.delta, 0, 1)
    check_range("seed", options.seed, 0)
    if options.unknown is not None and not 0 < options.unknown < 1:
        raise ConfigError(f"unknown: must lie between 0 and 1, not {options.unknown:g}")
    if not 0 < options.delta < 1 or math.isnan(options.delta):
        raise ConfigError(f"delta: must lie between 0 and 1, not {options.delta:g}")
    return Aim(risk, level, options.delta)


if __name__ == "__main__":
    main()
