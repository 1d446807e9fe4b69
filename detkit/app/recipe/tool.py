"""``tools/recipe.py``: looks at data, times this computer, and writes an experiment with the reason for each line.

Nothing is trained but a few steps for the timings, unless ``try=true``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.text import Text

from detkit.app.assemble.parts import build_dataset, check_same_classes, choose_device
from detkit.app.assemble.schema import RecipeOptions
from detkit.app.cli.entry import run_tool
from detkit.app.recipe.files import Place, data_choices, name_of
from detkit.app.recipe.findings import look
from detkit.app.recipe.given import DETECTORS, Given
from detkit.app.recipe.made import Option, options
from detkit.app.recipe.measure import machine, time_all
from detkit.app.recipe.speed import Speeds, read_speeds
from detkit.app.recipe.tries import Trial, Tried
from detkit.app.recipe.weights import at_hand
from detkit.app.recipe.writer import Writer
from detkit.app.run.manifest import data_hash
from detkit.app.run.next_command import path_word, said, tell_next
from detkit.config import ConfigError, validate
from detkit.config.ranges import check_range
from detkit.config.validate import plain
from detkit.data.datasets.base import DetectionDataset
from detkit.utils.commands import command
from detkit.utils.files import output_folder
from detkit.utils.log import logger, set_up_logging

#: The shortest and longest time that can be given, in minutes: six seconds and thirty days.
_SHORTEST, _LONGEST = 0.1, 30 * 24 * 60

#: The least and greatest share of them that can go to what is tried: something must be left for either.
_LEAST_SHARE, _MOST_SHARE = 0.05, 0.95


def main() -> None:
    """The command line."""
    run_tool(run, "recipe")


def run(cfg: DictConfig, _: Path) -> None:
    """Write the experiment for ``cfg.data`` into ``cfg.output``."""
    is_tried = _taken_out(cfg)
    validate(cfg, RecipeOptions, also=("try",))
    set_up_logging()
    check_range("minutes", cfg.minutes, _SHORTEST, _LONGEST)
    check_range("threads", cfg.threads, 1)
    check_range("try_share", cfg.try_share, _LEAST_SHARE, _MOST_SHARE)
    place = Place(Path(cfg.output), name_of(cfg.name, cfg.data.root))
    if place.file.exists() and not cfg.overwrite:
        raise ConfigError(f"{place.file} is there already: overwrite=true replaces it, name=NAME writes another")
    train, val = _open(cfg)
    if is_tried and (val is None or all(truth.crowd.all() for truth in val.truths)):
        raise ConfigError("try: needs data.val with objects, since it compares by AP")
    with tempfile.TemporaryDirectory() as folder:
        writer = _writer(cfg, train, val, (place, Place(Path(folder), "timed")), is_tried)
        speeds = _speeds(cfg, writer, place, is_tried)
        found = options(writer.given, speeds)
        tried = _try(cfg, writer, speeds, found, (train, val)) if is_tried else Tried(found[0], _doubts(found[1:]))
        writer.write(place, writer.given, speeds, tried.best, tried.words)
    rich.print("recipe:", Text(str(place.file), "bold"))
    tell_next("train", *place.words)


def _taken_out(cfg: DictConfig) -> bool:
    """The value of ``try``, which no field of Python's can be called."""
    with open_dict(cfg):
        value = cfg.pop("try")
    if not isinstance(value, bool):
        raise ConfigError(f"try: must be true or false, not {value!r}")
    return value


def _open(cfg: DictConfig) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The data to learn from and to measure by; the latter None where the configuration has none.

    Raises:
        ConfigError: they cannot be opened; where it is the latter, the message tells what to do.
    """
    node = plain(cfg)["data"]
    train = build_dataset(node, "train")
    if node["val"] is None:
        return train, None
    try:
        val = build_dataset(node, "val")
    except ConfigError as error:
        split = f"{command('convert')} ... 'into={{train: 0.8, val: 0.2}}' splits data"
        raise ConfigError(f"{error}\n  without images to measure by: data.val=null; {split}") from error
    check_same_classes(train.categories, val.categories, "data.val")
    return train, val


def _writer(
    cfg: DictConfig,
    train: DetectionDataset,
    val: DetectionDataset | None,
    places: tuple[Place, Place],
    is_tried: bool,
) -> Writer:
    """What writes experiments for the time that is given, or for what is left of it after the tries.

    Args:
        places: where the experiment goes, and one for what is only timed.
    """
    device: Any = choose_device(cfg.device).type
    place, scratch = places
    minutes = cfg.minutes * (1 - cfg.try_share) if is_tried else cfg.minutes
    given = Given(look(train, val), minutes, device, is_pretrained=True)
    is_pretrained = at_hand(given.backbone) if cfg.pretrained is None else cfg.pretrained
    preset = HydraConfig.get().runtime.choices["data"]
    given = replace(given, is_pretrained=is_pretrained, is_declined=cfg.pretrained is False)
    return Writer(given, train, preset, data_choices(cfg.data, preset), cfg.threads, scratch, _asked(cfg, place))


def _asked(cfg: DictConfig, place: Place) -> list[str]:
    """What the command line says beside the data, with the timings in place of new ones: the same file comes of it."""
    typed = {text.partition("=")[0]: text for text in said(("data", "overwrite", "speed"))}
    return [*typed.values(), path_word("speed", cfg.speed or place.speeds)]


def _speeds(cfg: DictConfig, writer: Writer, place: Place, is_tried: bool) -> Speeds:
    """Those of ``cfg.speed``; of an earlier call here that was to try the same; or measured now, for ``place``."""
    timed = writer.timed
    if cfg.speed is not None:
        given = read_speeds(cfg.speed, DETECTORS)
        if other := given.unlike(timed):
            logger.warning("speed: %s: %s", cfg.speed, other)
        return given
    if is_tried and place.speeds.is_file():  # other steps would be other runs, and a killed try could not go on
        before, here = read_speeds(place.speeds, DETECTORS), machine(cfg.device, cfg.threads)
        other = before.unlike(timed)
        if before.machine == here and not other:
            logger.info("timed before: %s; without that file this computer is timed anew", place.speeds)
            return before
        if before.machine != here:
            logger.info("%s is of %s, and this is %s: timed anew", place.speeds, before.machine, here)
        else:
            logger.info("%s: %s: timed anew", place.speeds, other)
    measured = replace(time_all(writer.bench, writer.train, cfg.device, cfg.threads), timed=timed)
    with output_folder(place.speeds.parent):
        measured.write(place.speeds)
    return measured


def _try(
    cfg: DictConfig,
    writer: Writer,
    speeds: Speeds,
    found: Sequence[Option],
    sets: Sequence[DetectionDataset | None],
) -> Tried:
    folder = Path(cfg.run_root) / "recipe" / name_of(cfg.name, cfg.data.root)
    minutes = cfg.minutes * cfg.try_share
    data = [data_hash(dataset) for dataset in sets if dataset is not None]
    tried = Trial(folder, writer.writer_at(speeds), minutes, cfg.try_seeds, data).run(found)
    budget = f"Of the {cfg.minutes:g} min the tries had {minutes:.3g}, and this training has the rest."
    return replace(tried, words=[budget, *tried.words])


def _doubts(doubted: Sequence[Option]) -> list[str]:
    return [f"In doubt: {option.name}, since {option.doubt}; try=true compares" for option in doubted]


if __name__ == "__main__":
    main()
