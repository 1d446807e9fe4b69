"""See `python tools/compare.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("compare")
