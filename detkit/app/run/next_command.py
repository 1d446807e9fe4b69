"""The last line of a tool: the command that comes next, with the paths of this one, as the user would type it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rich
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from rich.text import Text

from detkit.app.cli.overrides import quote
from detkit.app.cli.paths import own_configs
from detkit.app.cli.slots import search_paths
from detkit.app.run.folder import RunFolder
from detkit.config import ConfigError
from detkit.data.datasets.base import DetectionDataset
from detkit.utils.commands import command

#: What looks like an override that chooses or sets something, in a stored command.
_OVERRIDE = re.compile(r"\+*[A-Za-z_][\w./@-]*=")

#: A path that a command line takes as it is; commas and brackets may be lists.
_PLAIN = re.compile(r"[\w./~+:@%-]+")

#: Recipes to begin with, by the data that they are for; any other data begins with the last.
_RECIPES = (
    (re.compile("shapes"), "quickstart"),
    (re.compile("coco2017"), "faster_rcnn/coco_r50_fpn_1x"),
    (re.compile(""), "faster_rcnn/bccd_mobilenetv2_fpn"),
)


def tell_next(tool: str, *words: str) -> None:
    """Print ``next: python tools/<tool>.py <words>``, each word quoted where a shell needs it, in one line."""
    line = " ".join(["next:", command(tool), *map(shlex.quote, words)])
    rich.get_console().print(Text(line), soft_wrap=True)


def tell_prediction(run_folder: Path, dataset: DetectionDataset | None) -> None:
    """After a training: its detector on a picture, one of ``dataset`` if that has files."""
    tell_prediction_with(RunFolder(run_folder).checkpoint, dataset)


def tell_prediction_with(
    checkpoint: Path, dataset: DetectionDataset | None, size: tuple[int, int] | None = None
) -> None:
    """The detector in ``checkpoint`` on a picture, one of ``dataset`` if that has files; of ``size`` (h, w) px alone
    where that is given."""
    truths = () if dataset is None else dataset.truths
    fit = (truth for truth in truths if size in (None, truth.size))
    picture = next((truth.file for truth in fit if Path(truth.file).is_file()), "photo.jpg")
    tell_next("predict", path_word("checkpoint", checkpoint), path_word("input", picture))


def tell_explanation(checkpoint: str) -> None:
    """After detections: why objects are missed, in the same data."""
    tell_next("explain", path_word("checkpoint", checkpoint), *_of_data())


def tell_audit(checkpoint: str) -> None:
    """After an explanation: what the assigner left out in that training; the numbers, where its command is unknown."""
    if overrides := _started_with(Path(checkpoint).parent):
        tell_next("audit", *overrides)
    else:
        tell_next("evaluate", path_word("checkpoint", checkpoint), *_of_data())


def tell_training(own_keys: Iterable[str]) -> None:
    """After an audit: the training that it looked at, which does not know the audit's ``own_keys``."""
    tell_next("train", *_where(), *said(own_keys))


def tell_audit_of_data(own_keys: Iterable[str]) -> None:
    """After a look at data: the audit of a recipe on them."""
    data = HydraConfig.get().runtime.choices.get("data") or ""
    recipe = next(name for pattern, name in _RECIPES if pattern.match(data))
    words = [word for word in said(own_keys) if not word.startswith("data=")]
    tell_next("audit", *_where(), f"experiment={recipe}", f"data={data}", *words)


def said(but: Iterable[str] = ()) -> list[str]:
    """The overrides of this command line as a user types them, without the keys ``but`` and all below them."""
    words = (word.removeprefix("++") for word in HydraConfig.get().overrides.task)
    left_out = tuple(but)
    return [word for word in words if re.split(r"[.@=]", word.lstrip("~"), maxsplit=1)[0] not in left_out]


def _where() -> list[str]:
    """What this command line says of where configurations of the user's own lie."""
    hydra = HydraConfig.get()
    folder = own_configs(hydra.runtime.config_sources)
    flag = [] if folder is None else ["--config-dir", _from_here(folder)]
    return [*flag, *search_paths(hydra.overrides.hydra)]


def _of_data() -> list[str]:
    """What this command line says of data, for the next tool on them."""
    words = [word for word in said() if re.match(r"data[.@=/]", word)]
    return [*_where(), *words] if words else []


def _started_with(folder: Path) -> list[str]:
    """The flags and overrides that the run in ``folder`` was started with, as far as they say what it is; none where
    they do not name an experiment."""
    try:
        typed = (RunFolder(folder).manifest() or {}).get("command", [])
    except ConfigError:
        return []
    words = [word.removeprefix("++") for word in typed if isinstance(word, str) and _OVERRIDE.match(word)]
    kept = [word for word in words if not word.startswith(("hydra.", "hydra/", "resume", "sweep="))]
    if not any(word.startswith("experiment=") for word in kept):
        return []
    own = get_args_parser().parse_known_intermixed_args(typed[1:])[0].config_dir
    return [*([] if own is None else ["--config-dir", own]), *search_paths(words), *kept]


def path_word(key: str, path: str | Path) -> str:
    """The override that gives ``key`` the file ``path``, seen from the current folder where it lies below it."""
    return word(key, _from_here(path))


def _from_here(path: str | Path) -> str:
    whole = Path(path).absolute()
    return os.path.relpath(whole) if whole.is_relative_to(Path.cwd()) else str(whole)


def word(key: str, value: Any) -> str:
    """The override that gives ``key`` a plain ``value``."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    return f"{key}={value if _PLAIN.fullmatch(value) else quote(value)}"
