"""``tools/explain.py``: why a trained detector misses what it misses, and finds what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import rich
from omegaconf import DictConfig
from rich.text import Text

from detkit.app.assemble.schema import ExplainOptions
from detkit.app.assemble.stored import load_stored, open_split
from detkit.app.cli.entry import run_tool
from detkit.app.explain.found import examine, explain
from detkit.app.explain.page import explanation_page
from detkit.app.run.beside import folder_beside, refuse_run
from detkit.app.run.next_command import tell_audit
from detkit.config import ConfigError
from detkit.utils.files import atomic_write, output_folder
from detkit.utils.log import set_up_logging
from detkit.utils.progress import track


def main() -> None:
    """The command line."""
    run_tool(run, "explain")


def run(cfg: DictConfig, _: Path) -> None:
    """Explain the errors of ``cfg.checkpoint`` on ``cfg.split``; the report goes to ``cfg.output`` or beside it."""
    set_up_logging()
    options, stored = load_stored(cfg, ExplainOptions)
    _check(options)
    refuse_run(options.output)
    dataset, loader = open_split(stored, options.split)
    if all(truth.crowd.all() for truth in dataset.truths):
        raise ConfigError(
            f"data.{options.split}: none of its {len(dataset)} images has an object to find: nothing can be missed"
        )
    precision = options.precision or stored.config["trainer"]["precision"]
    checkpoint = Path(options.checkpoint)
    bare, views = stored.bare(options.tta)
    detector = stored.calibrated(bare, views)
    source = f"{checkpoint} on data.{options.split}" + (f", {views}" if views else "")
    wanted = options.output or folder_beside(checkpoint, "explanation", options.split)
    with output_folder(wanted) as folder:
        batches = track(loader, len(loader), "explaining")
        examined = list(examine(detector, batches, dataset, device=stored.device, precision=precision))
        explanation = explain(examined, dataset.categories, options.score_threshold)
        atomic_write(folder / "explanation.json", json.dumps(explanation.to_dict(source), indent=1) + "\n")
        html = explanation_page(explanation, dataset, source, options.num_pictures)
        atomic_write(folder / "explanation.html", html)
    rich.print(explanation.table())
    rich.print("report with pictures:", Text(str(folder / "explanation.html"), "bold"))
    tell_audit(options.checkpoint)


def _check(options: ExplainOptions) -> None:
    if options.score_threshold is not None and not 0 <= options.score_threshold <= 1:
        raise ConfigError(f"score_threshold: must lie in [0, 1], not {options.score_threshold}")
    if options.num_pictures < 0:
        raise ConfigError(f"num_pictures: must be 0 or more, not {options.num_pictures}")


if __name__ == "__main__":
    main()
