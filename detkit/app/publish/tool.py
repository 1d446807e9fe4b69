"""``tools/publish.py``: a checkpoint stripped to what others need, in one file in which nothing can run, and a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from detkit.app.assemble.exported import is_exported
from detkit.app.assemble.outputs import check_new, refuse_url_without_output, together
from detkit.app.assemble.stored import fetched
from detkit.app.cli.entry import run_tool
from detkit.app.run.next_command import path_word, tell_next
from detkit.config import ConfigError, validate
from detkit.config.validate import plain
from detkit.engine.bad_steps.finite import refuse_bad_tensors
from detkit.engine.state.checkpoint import Checkpoint, load_checkpoint
from detkit.engine.state.published import SUFFIX, Published, digest_of, write_published
from detkit.evaluation.summary import UNDEFINED, is_score
from detkit.utils.download import checksum, is_url
from detkit.utils.files import atomic_write
from detkit.utils.log import set_up_logging


@dataclass
class PublishOptions:
    """``tools/publish.py``."""

    checkpoint: str
    licence: str
    output: str | None = None
    name: str | None = None
    description: str | None = None


def main() -> None:
    """The command line."""
    run_tool(run, "publish")


def run(cfg: DictConfig, _: Path) -> None:
    """Publish ``cfg.checkpoint`` as ``cfg.output``, with a card of the same name.

    Raises:
        ConfigError: a key is missing or wrong.
        CheckpointError: the checkpoint cannot be read.
    """
    set_up_logging()
    own = {str(k): plain(v) for k, v in cfg.items_ex(resolve=False)}
    validate(own, PublishOptions)
    options = PublishOptions(**own)
    if not options.licence.strip():
        raise ConfigError("licence: say what others may do with the weights, such as licence=Apache-2.0")
    output = _output(options)
    card = output.with_suffix(".md")
    check_new(output, card)
    checkpoint = _checkpoint(options.checkpoint)
    with together(output, card):
        write_published(output, checkpoint.weights, published(checkpoint, options.licence))
        name = options.name or output.stem
        atomic_write(card, model_card(checkpoint, name, options, checksum(output), output.name))
    rich.print("published:", Text(str(output), "bold"), "and its card", Text(str(card), "bold"))
    tell_next("predict", path_word("checkpoint", output), path_word("input", "photo.jpg"))


def _output(options: PublishOptions) -> Path:
    refuse_url_without_output(options.checkpoint, options.output)
    output = Path(options.output or Path(options.checkpoint).with_suffix(SUFFIX))
    if output.suffix.lower() != SUFFIX:
        raise ConfigError(f"output: the file ends in {SUFFIX}, not {output}")
    return output


def _checkpoint(source: str) -> Checkpoint:
    """What ``source`` names, whose weights are of use."""
    if is_exported(source):
        raise ConfigError(f"checkpoint: {source} is an exported file: publish the checkpoint that it was made from")
    checkpoint = load_checkpoint(fetched(source, "checkpoint") if is_url(source) else source)
    refuse_bad_tensors(checkpoint.weights, f"{checkpoint.source} is of no use")
    return checkpoint


def published(checkpoint: Checkpoint, licence: str) -> Published:
    """What stands beside the weights: no folder of the maker's is in it."""
    plain_config: Any = OmegaConf.to_container(OmegaConf.create(dict(checkpoint.config)), resolve=False)
    return Published(
        step=checkpoint.step, categories=checkpoint.categories.to_dict(), config=without_folders(plain_config),
        metrics={name: float(value) for name, value in checkpoint.metrics.items()}, versions=dict(checkpoint.versions),
        calibration=checkpoint.calibration, licence=licence, digest=digest_of(checkpoint.weights),
    )  # fmt: skip


def without_folders(value: Any) -> Any:
    """``value`` with every absolute path in it as its last part: where a file lay tells who made it, no more."""
    if isinstance(value, Mapping):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(v) for v in value]
    if isinstance(value, str) and (value.startswith(("/", "~")) or Path(value).is_absolute()):
        return Path(value).name
    return value


def model_card(checkpoint: Checkpoint, name: str, options: PublishOptions, sha256: str, file: str) -> str:
    """The card, Markdown: what it finds, how well, under which licence, and how it is used."""
    model = checkpoint.config.get("model", {})
    parts = [model.get("_target_")] + [(model.get(k) or {}).get("_target_") for k in ("backbone", "neck", "head")]
    classes = ", ".join(checkpoint.categories.names[:50]) + ", ..." * (len(checkpoint.categories) > 50)
    said = {
        key: "no such objects" if value == UNDEFINED and is_score(key) else f"{value:.4f}"
        for key, value in checkpoint.metrics.items()
    }
    rows = "".join(f"| {key} | {value} |\n" for key, value in said.items())
    aim = (checkpoint.calibration or {}).get("aim")
    calibrated = f"\nThresholds of the classes keep a promise: {aim}.\n" if aim else ""
    return (
        f"# {name}\n\n{options.description or 'A detector trained with detkit.'}\n\n"
        f"- detector: {', '.join(p for p in parts if p)}\n- {len(checkpoint.categories)} classes: {classes}\n"
        f"- trained for {checkpoint.step} steps with detkit {checkpoint.versions.get('detkit', 'unknown')}\n"
        f"- licence of the weights: {options.licence}\n- SHA-256 of {file}: {sha256}\n{calibrated}\n"
        f"| on the validation data | |\n| --- | --- |\n{rows}\n"
        f'```python\nimport detkit\n\nfound = detkit.load("{file}").predict("photo.jpg").above(0.5)\n```\n\n'
        f'From the web: `detkit.load("https://.../{file}#sha256={sha256}")`.\n'
    )


if __name__ == "__main__":
    main()
