"""The command line: ``detkit train ...`` and ``python tools/train.py ...`` are one and the same.

Nothing beyond Python's own library is imported here. What the tools need takes seconds, in which Ctrl-C shall be as
quiet as it is later.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from detkit.utils.commands import EXIT_INTERRUPTED, EXIT_USAGE, tool_name


class Tool(NamedTuple):
    """Where a tool's ``main`` is, and what it is for."""

    module: str
    purpose: str


#: By their names on the command line, in the order in which a project comes to need them.
TOOLS = {
    "train": Tool("detkit.app.train", "train a detector from a configuration, or a sweep of them (-m)"),
    "evaluate": Tool("detkit.app.use.evaluate", "COCO's numbers of a checkpoint"),
    "predict": Tool("detkit.app.use.predict", "boxes on images, folders and videos, and a results file"),
    "inspect-data": Tool("detkit.app.inspect.data", "what is in a data set, and what is wrong with it"),
    "convert": Tool("detkit.app.convert", "COCO, VOC and YOLO into each other, and splits"),
    "recipe": Tool("detkit.app.recipe.tool", "before training: an experiment file for your data, time and computer"),
    "audit": Tool("detkit.app.audit.tool", "before training: the objects that nothing would be learnt from"),
    "explain": Tool("detkit.app.explain.tool", "after training: why objects are missed and others made up"),
    "labels": Tool("detkit.app.labels.tool", "labels that are likely wrong, by detectors that did not train on them"),
    "calibrate": Tool("detkit.app.calibrate.tool", "after training: a threshold for each class that keeps a promise"),
    "add-class": Tool("detkit.app.add_class.tool", "after training: new classes from a few examples, without training"),
    "export": Tool("detkit.app.export.tool", "a detector as a file for other runtimes, checked against itself"),
    "import": Tool("detkit.app.import_weights.tool", "a detector of detectron2's or mmdetection's as a checkpoint"),
    "publish": Tool("detkit.app.publish.tool", "a checkpoint to be given away, in one file without code, and a card"),
    "compare": Tool("detkit.app.compare.tool", "which run is better, and is it more than chance"),
    "inspect-model": Tool("detkit.app.inspect.model", "what each level of a detector sees, and what it costs"),
    "show-config": Tool("detkit.app.inspect.config", "the configuration of a run, or in what two runs differ"),
    "list": Tool("detkit.app.inspect.components", "what can be plugged where, with every option"),
    "replay": Tool("detkit.app.inspect.replay", "run the step again that a training ended with"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """``detkit TOOL ...``."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("", "-h", "--help"):
        print(_overview())
    elif name == "--version":
        print(f"detkit {importlib.import_module('detkit').__version__}")
    elif (tool := tool_name(name)) not in TOOLS:
        _refuse(name)
    else:
        sys.argv = [f"detkit {tool}", *rest[:-1]]
        run(tool)


def run(name: str) -> None:
    """Start a tool with what stands in ``sys.argv``.

    Args:
        name: on the command line, or that of its file in ``tools/``.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, _leave)
    module = importlib.import_module(TOOLS[tool_name(name)].module)
    signal.signal(signal.SIGINT, before)
    try:
        module.main()
    except KeyboardInterrupt:
        _leave()


def _leave(*_: object) -> NoReturn:
    """End at once: nothing has begun. An exception could be taken for another, in the midst of an import."""
    os.write(2, b"\nstopped by Ctrl-C\n")
    os._exit(EXIT_INTERRUPTED)


def _overview() -> str:
    width = max(map(len, TOOLS))
    lines = [f"  detkit {name:<{width}}  {tool.purpose}" for name, tool in TOOLS.items()]
    return "\n".join(["Train, evaluate and compare object detectors from YAML.", "", *lines, "", _MORE])


_MORE = "detkit TOOL --help tells more; detkit train alone lists the experiments."


def _refuse(name: str) -> NoReturn:
    from detkit.config.registry import did_you_mean

    print(f"error: detkit {name}: there is no such tool{did_you_mean(name, TOOLS)}", file=sys.stderr)
    sys.exit(EXIT_USAGE)
