"""What a resumed run needs beside weights, so that it ends in the bits of one that never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from detkit.engine.state.checkpoint import Checkpoint, CheckpointError, current_versions
from detkit.utils import dist
from detkit.utils.log import logger
from detkit.utils.seed import global_state, restore_global_state


def process_state() -> dict[str, Any]:
    """The random states of all processes, and the number of CPU threads, which changes the bits of sums."""
    return {"random": dist.all_gather(global_state()), "threads": torch.get_num_threads()}


def restore_process(state: Mapping[str, Any]) -> None:
    """Put back what :func:`process_state` gave, and say where that is not possible."""
    threads, states = state["threads"], state["random"]
    if threads != torch.get_num_threads():
        logger.warning(
            "taking %d CPU threads as before, not %d: the bits depend on it", threads, torch.get_num_threads()
        )
        torch.set_num_threads(threads)
    if len(states) == dist.world_size():
        restore_global_state(states[dist.rank()])
    else:
        logger.warning("%d processes now, %d before: random states start anew", dist.world_size(), len(states))


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], source: str) -> None:
    """Put ``state`` into ``optimizer``, which keeps the rates and decays it was built with; others get a warning.

    Raises:
        CheckpointError: it is the state of another kind of optimiser, or of other parameter groups.
    """
    kind = type(optimizer).__name__
    if state["kind"] != kind:
        raise CheckpointError(f"{source} was trained with {state['kind']}, not with {kind}")
    asked = _settings(optimizer)
    try:
        optimizer.load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})
    except ValueError as error:
        raise CheckpointError(f"{source} was trained with other parameter groups: {error}") from error
    if asked != (before := _settings(optimizer)):
        logger.warning("%s: going on with (lr, weight_decay) %s instead of %s", source, asked, before)
    for group, (rate, decay) in zip(optimizer.param_groups, asked, strict=True):
        group["base_lr"] = rate
        if "weight_decay" in group:
            group["weight_decay"] = decay


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of ``optimizer`` with its kind, for :func:`restore_optimizer`."""
    return {"kind": type(optimizer).__name__, **optimizer.state_dict()}


def warn_of_versions(checkpoint: Checkpoint) -> None:
    """Say which versions differ from those that wrote ``checkpoint``: the bits may too."""
    now = current_versions()
    changed = [
        f"{name} {v} before, {now.get(name)} now" for name, v in checkpoint.versions.items() if v != now.get(name)
    ]
    if changed:
        logger.warning("%s: versions differ, so the bits may too: %s", checkpoint.source, ", ".join(changed))


def _settings(optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(group["base_lr"], group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
