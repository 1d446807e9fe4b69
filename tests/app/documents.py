"""The commands of README and docs, as a reader meets them: in blocks, in the running text, and in output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/*.md", "datasets/README.md", "configs/sweep/README.md")
_COMMAND = re.compile(r"(\w+=\S+ )?(python|torchrun|tensorboard|make|pip) ")
_OVERRIDE = re.compile(r'(\.\.\. )?"?[~+]?\w[\w@./]*=')


@dataclass(frozen=True)
class Found:
    """``text``: a command, or where ``whole`` is false a piece of one that the text speaks of (``tta=flip``)."""

    page: str
    text: str
    whole: bool


def commands() -> list[Found]:
    """What all pages ask the reader to type, each once, in the pages' order."""
    paths = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    found = [one for path in paths for one in _of_page(path.read_text(), str(path.relative_to(ROOT)))]
    return list({one.text: one for one in found}.values())


def plugin() -> str:
    """The component of ``docs/models.md``, which one of its commands names as ``my_necks``."""
    return (ROOT / "docs/models.md").read_text().partition("```python\n")[2].partition("```")[0]


def own_experiment() -> str:
    """The file of README that one of its commands names as ``foo``."""
    return (ROOT / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]


def _of_page(text: str, page: str) -> Iterator[Found]:
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = line.rpartition("again: ")[2].removeprefix("$ ")
            if _COMMAND.match(line):
                yield Found(page, _without_comment(line), True)
    for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        span = " ".join(span.split())
        if _COMMAND.match(span):
            yield Found(page, span, True)
        elif _OVERRIDE.match(span):
            yield Found(page, span, False)


def _without_comment(line: str) -> str:
    return re.sub(r"\s+#.*", "", line).strip()
