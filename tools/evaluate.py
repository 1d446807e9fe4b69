"""See `python tools/evaluate.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("evaluate")
