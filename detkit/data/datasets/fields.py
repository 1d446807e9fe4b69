"""Single values of annotation files, as they stand there: no word is taken for a number, and no number for a flag."""

from __future__ import annotations

_FLAGS = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}

#: What a flag may be, for messages.
FLAG_VALUES = "0, 1, true, false"


def parse_flag(value: object) -> bool | None:
    """0, 1, true or false, as a number, a word or a string, in any case; None for everything else."""
    if isinstance(value, str):
        value = value.strip().lower()
    return _FLAGS.get(value) if isinstance(value, (str, int, float)) else None


def parse_number(value: object) -> float:
    """A JSON number as a float; NaN for everything else, strings, booleans and what is too large for one too."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
    except OverflowError:
        return float("nan")


def is_whole(value: object) -> bool:
    """Whether a JSON value is a whole number that fits int64; 3.0 is one, "3" and true are none."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**53
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
