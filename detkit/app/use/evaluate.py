"""``tools/evaluate.py``: COCO's numbers of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from detkit.app.assemble.parts import build_evaluator
from detkit.app.assemble.schema import EvaluateOptions
from detkit.app.assemble.stored import load_stored, open_split
from detkit.app.cli.entry import run_tool
from detkit.app.run.beside import folder_beside, refuse_run
from detkit.app.run.next_command import tell_explanation
from detkit.app.run.report import report_evaluation
from detkit.config import ConfigError
from detkit.engine.evaluation import evaluate
from detkit.evaluation import CocoEvaluator
from detkit.evaluation.results import write_results
from detkit.utils.files import output_folder
from detkit.utils.log import set_up_logging


def main() -> None:
    """The command line."""
    run_tool(run, "evaluate")


def run(cfg: DictConfig, _: Path) -> float:
    """Evaluate ``cfg.checkpoint`` on ``cfg.split``; the files go to ``cfg.output`` or beside the checkpoint.

    Returns:
        AP, nan where there is no object to find.
    """
    set_up_logging()
    options, stored = load_stored(cfg, EvaluateOptions)
    refuse_run(options.output)
    dataset, loader = open_split(stored, options.split)
    if stored.config.get("evaluator") is None:
        raise ConfigError("evaluator: the run had none; choose one with evaluator=CocoEvaluator")
    evaluator = build_evaluator(stored.config["evaluator"], dataset, lambda: open_split(stored, "train")[0])
    beside = folder_beside(options.checkpoint, "evaluation", options.split)
    with output_folder(options.output or beside) as folder:
        result = evaluate(
            stored.augmented(options.tta), loader, evaluator,
            device=stored.device, precision=options.precision or stored.config["trainer"]["precision"],
            val_loss=options.val_loss,
        )  # fmt: skip
        if isinstance(evaluator, CocoEvaluator):
            write_results(folder / "detections.json", evaluator.results())
        report_evaluation(folder, result, dataset)
    tell_explanation(options.checkpoint)
    return result.value("AP")


if __name__ == "__main__":
    main()
