"""See `python tools/explain.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("explain")
