"""``tools/import.py``: a checkpoint of detectron2's or mmdetection's as one of detkit's, with its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import rich
import torch
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from detkit.app.assemble.init_from import FOREIGN, from_foreign, library_of
from detkit.app.assemble.outputs import check_new, together
from detkit.app.assemble.stored import Stored
from detkit.app.cli.composer import Composer
from detkit.app.cli.entry import run_tool
from detkit.app.import_weights.certificate import Certificate, certified, read_expected
from detkit.app.run.next_command import path_word, tell_next
from detkit.config import ConfigError, validate
from detkit.config.validate import plain
from detkit.engine.bad_steps.finite import refuse_bad_weights
from detkit.engine.state.checkpoint import Checkpoint, save_checkpoint
from detkit.models import Detector, build_detector
from detkit.models.converters import Foreign, Style, backbone_keys, coco_categories, read_foreign
from detkit.structures import Categories
from detkit.utils.files import atomic_write
from detkit.utils.log import set_up_logging

#: The recipe that goes with a model preset: how its images are resized, and how it is trained on COCO.
_RECIPES = {
    "faster_rcnn_fpn": "faster_rcnn/coco_r50_fpn_1x",
    "retinanet": "retinanet/coco_r50_fpn_1x",
    "centernet": "centernet/coco_r18",
}


@dataclass
class ImportOptions:
    """``tools/import.py``."""

    source: str
    output: str
    style: Literal["pytorch", "caffe"] | None = None
    names: tuple[str, ...] | None = None
    certify: str | None = None


def main() -> None:
    """The command line."""
    run_tool(run, "import")


def run(cfg: DictConfig, _: Path) -> None:
    """Write ``cfg.source`` as the checkpoint ``cfg.output`` and its configuration as YAML beside it.

    Raises:
        ConfigError: a key is missing or wrong, the file cannot be read, or not every tensor has a place.
        DiffersError: the detector does not find what ``cfg.certify`` has.
    """
    set_up_logging()
    own = {str(k): plain(v) for k, v in cfg.items_ex(resolve=False)}
    validate(own, ImportOptions)
    options = ImportOptions(**own)
    output = _checked_output(options.output)
    foreign = _read(options.source)
    categories = categories_of(foreign, options.names)
    config = configuration(foreign, _style(foreign, options))
    detector = _detector(options.source, config, categories)
    checkpoint = Checkpoint(step=0, detector=detector.state_dict(), categories=categories, config=config, metrics={})
    certificate = None
    if options.certify is not None:
        stored = Stored(checkpoint, config, detector, torch.device("cpu"))
        certificate = certified(stored, read_expected(Path(options.certify), categories))
    _write(output, options.source, checkpoint, certificate)
    rich.print("imported:", Text(str(output), "bold"), "and its configuration", Text(str(_beside(output)), "bold"))
    if certificate is not None:
        rich.get_console().print(Text(certificate.describe()), soft_wrap=True)
    tell_next("predict", path_word("checkpoint", output), path_word("input", "photo.jpg"))


def _checked_output(output: str) -> Path:
    path = Path(output)
    if path.suffix.lower() != ".pt":
        raise ConfigError(f"output: the checkpoint ends in .pt, not {path}")
    check_new(path, _beside(path))
    return path


def _beside(output: Path) -> Path:
    return output.with_suffix(".yaml")


def _read(source: str) -> Foreign:
    library = library_of(source)
    if library is None:
        known = " or ".join(f"{name}:FILE" for name in FOREIGN)
        raise ConfigError(
            f"source: must be {known}, not {source!r}; training takes torchvision's by init_from=torchvision:"
        )
    try:
        return read_foreign(library, Path(source.partition(":")[2]))
    except (ValueError, OSError) as error:
        raise ConfigError(f"source: {error}") from error


def _style(foreign: Foreign, options: ImportOptions) -> Style:
    if options.style is None and foreign.style is None and foreign.pixels is not None:
        raise ConfigError(
            "style: the file tells its pixels and not where a bottleneck halves its map: style=caffe for the first 1x1 "
            "convolution, style=pytorch for the 3x3"
        )
    if options.style is None and foreign.style is None:
        raise ConfigError(
            "style: the file does not tell it: style=caffe for BGR pixels less a mean and the stride in the first 1x1 "
            "convolution (detectron2's model zoo), style=pytorch for RGB by ImageNet's mean and deviation and the "
            "stride in the 3x3 (what started from torchvision's ResNet)"
        )
    if None not in (options.style, foreign.style) and options.style != foreign.style:
        raise ConfigError(f"style: {options.source} says that it is of the style {foreign.style}, not {options.style}")
    style = options.style or foreign.style
    assert style is not None
    return style


def categories_of(foreign: Foreign, given: Sequence[str] | None) -> Categories:
    """The classes of the file: as ``given``, as it names them, or COCO's where it has as many.

    Raises:
        ConfigError: they are not known, or not as many.
    """
    try:
        num, coco = foreign.num_classes, coco_categories()
    except ValueError as error:
        raise ConfigError(
            f"source: {error}: it is not one of {foreign.library}'s Faster R-CNN, RetinaNet or CenterNet; its first "
            f"tensor is {next(iter(foreign.state))}"
        ) from error
    names = given or foreign.names
    if names is None and num == len(coco):
        return coco
    if names is None:
        raise ConfigError(f"names: the file has {num} classes and does not name them: names=[first,second,...]")
    if len(names) != num:
        raise ConfigError(f"names: the file has {num} classes, not {len(names)}")
    try:
        return coco if tuple(names) == coco.names else Categories(tuple(names), tuple(range(1, num + 1)))
    except ValueError as error:
        raise ConfigError(f"names: {error}") from error


def configuration(foreign: Foreign, style: Style) -> dict[str, Any]:
    """The whole configuration of the detector, with COCO as its data."""
    family = next(name for name in _RECIPES if foreign.preset.startswith(name))
    overrides = [f"experiment={_RECIPES[family]}", f"model={foreign.preset}", "data.root=datasets/coco"]
    overrides.append("trainer.precision=fp32")  # what its own library computes in
    if family == "centernet" and style == "caffe":
        raise ConfigError("style: CenterNet's ResNet-18 is of the style pytorch alone")
    if family != "centernet":
        overrides.append(f"model.backbone.depth={foreign.depth}")
    keys = backbone_keys(style, foreign.pixels_by(style).stats)
    overrides += [f"model.backbone.{key}={value}" for key, value in keys.items()]
    return plain(Composer()(*overrides).cfg)


def _detector(source: str, config: dict[str, Any], categories: Categories) -> Detector:
    detector = build_detector(config["model"], categories)
    try:
        missing = from_foreign(detector, source, categories, config["model"], categories.names)
    except (ValueError, OSError) as error:
        raise ConfigError(f"source: {error}") from error
    if missing:
        raise ConfigError(f"source: {source} lacks {len(missing)} tensors of the model: {', '.join(missing)}")
    refuse_bad_weights(detector, f"source: {source} is of no use")
    return detector.eval()


def _write(output: Path, source: str, checkpoint: Checkpoint, certificate: Certificate | None) -> None:
    said = [
        f"# {source} as {output.name} has it: pixels in RGB, classes in the file's order, background last.",
        *([] if certificate is None else [f"# {certificate.describe()}"]),
    ]
    with together(output, _beside(output)):
        save_checkpoint(output, checkpoint)
        atomic_write(_beside(output), "\n".join([*said, OmegaConf.to_yaml(OmegaConf.create(dict(checkpoint.config)))]))


if __name__ == "__main__":
    main()
