"""See `python tools/publish.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("publish")
