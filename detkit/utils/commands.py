"""How detkit's tools are started, so that messages name a command in the user's own words."""

from __future__ import annotations

import sys
from pathlib import Path

#: A mistake in what the user gave, as against a failure on the way.
EXIT_USAGE = 2

#: The shell's code for Ctrl-C.
EXIT_INTERRUPTED = 130

#: Tools that have another name in ``detkit NAME``.
_NAMES = {"list_components": "list"}

_CHECKOUT = Path(__file__).resolve().parents[2]


def tool_name(file: str) -> str:
    """What follows ``detkit`` for the tool in ``tools/<file>.py``: "inspect-data" of "inspect_data"."""
    return _NAMES.get(file, file.replace("_", "-"))


def command(tool: str) -> str:
    """``python tools/train.py`` in a checkout, ``detkit train`` where that was typed or there is no checkout.

    Args:
        tool: as its file is called: "train", "inspect_data".
    """
    typed = Path(sys.argv[0]).name.partition(" ")[0].removesuffix(".exe")
    if typed != "detkit" and (_CHECKOUT / "tools" / f"{tool}.py").is_file():
        return f"python tools/{tool}.py"
    return f"detkit {tool_name(tool)}"
