"""The metric that a run is judged by: refused before it costs a run, where it cannot be there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from detkit.config.registry import did_you_mean
from detkit.evaluation import Evaluator
from detkit.evaluation.landmarks import LANDMARK_ERRORS


def is_loss(metric: str) -> bool:
    """Whether ``metric`` is "val_loss" or one of its terms, "val_loss/NAME"."""
    return metric.partition("/")[0] == "val_loss"


def is_lower_better(metric: str) -> bool:
    """Whether ``metric`` is a loss or an error of landmarks, and no score, of which higher is better."""
    return is_loss(metric) or metric in LANDMARK_ERRORS


def check_evaluation(
    evaluates: bool,
    only_with_evaluations: Mapping[str, object],
    monitor: str,
    evaluator: Evaluator | None,
    val_loss: bool,
) -> None:
    """Refuse what needs validation images where there are none, and to ``monitor`` what no evaluation will give.

    Args:
        evaluates: whether there are validation images.
        only_with_evaluations: arguments by name, which must then be None.

    Raises:
        ValueError: see above.
    """
    if evaluates:
        check_monitor(monitor, evaluator, val_loss)
        if only_with_evaluations.get("patience") is not None and only_with_evaluations.get("eval_every") is None:
            raise ValueError(
                f"patience={only_with_evaluations['patience']} counts evaluations, and with eval_every=null there is "
                "one alone, at the end: set eval_every too, or patience=null"
            )
        return
    for name, value in only_with_evaluations.items():
        if value is not None:
            raise ValueError(f"{name}={value} needs validation images, and there are none; set {name}=null")


def check_monitor(monitor: str, evaluator: Evaluator | None, val_loss: bool) -> None:
    """Refuse to ``monitor`` what no evaluation will give.

    Args:
        val_loss: whether evaluations compute losses.

    Raises:
        ValueError: there is nothing that computes it, or the evaluator has no such score.
    """
    if is_loss(monitor):
        if not val_loss:
            raise ValueError(f"monitor={monitor!r} needs val_loss=true")
    elif evaluator is None:
        raise ValueError(f"monitor={monitor!r} needs an evaluator; without one it is 'val_loss' or a term of it")
    elif (names := evaluator.metric_names) and monitor not in names:
        raise ValueError(f"trainer.monitor: no metric {monitor!r}{did_you_mean(monitor, [*names, 'val_loss'])}")


def check_monitored_term(monitor: str, terms: Iterable[str]) -> None:
    """Refuse to ``monitor`` a term of the loss that is not among ``terms``, those of a first training step.

    Raises:
        ValueError: it is not; the message names the nearest one.
    """
    known = [f"val_loss/{name}" for name in terms]
    if is_loss(monitor) and monitor not in ("val_loss", *known):
        raise ValueError(f"trainer.monitor: no metric {monitor!r}{did_you_mean(monitor, ['val_loss', *known])}")
