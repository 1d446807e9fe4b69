"""See `python tools/export.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("export")
