"""See `python tools/import.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("import")
