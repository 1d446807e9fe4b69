"""See `python tools/audit.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("audit")
