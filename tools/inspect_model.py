"""See `python tools/inspect_model.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("inspect_model")
