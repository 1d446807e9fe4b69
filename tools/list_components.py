"""See `python tools/list_components.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("list_components")
