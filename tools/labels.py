"""See `python tools/labels.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("labels")
