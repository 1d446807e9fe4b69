"""See `python tools/add_class.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("add_class")
