"""See `python tools/show_config.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("show_config")
