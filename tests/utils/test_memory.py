"""Freed memory stays with a process that asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Pages that eight blocks of 64 MiB touch for the first time, made and dropped in turn after a first one.
CODE = """
import resource
from detkit.utils.memory import keep_freed_memory
kept = keep_freed_memory()
def make():
    block = b"x" * (64 << 20)
make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    make()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    made = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env={**ours, **environment}, capture_output=True, text=True, check=True
    )
    kept, pages = made.stdout.split()
    return kept == "True", int(pages)


def test_blocks_of_the_same_size_touch_no_new_pages_unless_the_environment_says_so() -> None:
    kept, pages = run()
    if not kept:
        pytest.skip("this libc has no mallopt")
    left_alone, new_pages = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not left_alone
    assert 4 * pages < new_pages
