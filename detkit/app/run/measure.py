"""By what a training measures the values of its monitored metric: only values measured alike can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detkit.app.assemble.identity import is_free, leaves
from detkit.engine.monitor import is_loss


def measure_of(config: Mapping[str, Any], data: Mapping[str, str]) -> dict[str, Any]:
    """What differs, by key, where two values of the monitored metric cannot be compared.

    A score is measured by the evaluator and the validation data; a loss by the model too, and by how images come to it.

    Args:
        config: of the training, plain values, interpolations resolved.
        data: :func:`~detkit.app.run.manifest.data_hash` by split.
    """
    monitor, evaluator = config["trainer"].get("monitor", "AP"), config.get("evaluator") or {}
    sections = ("evaluator", *(("model", "transform.val", "data.loader.val") if is_loss(monitor) else ()))
    measure = {key: value for key, value in leaves(config) if is_free(key, sections) and not is_free(key)}
    splits = ("val", "train") if evaluator.get("frequency_bounds") is not None else ("val",)
    return {"trainer.monitor": monitor, **measure, **{f"data.{name}": data[name] for name in splits if name in data}}
