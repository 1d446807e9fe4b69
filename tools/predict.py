"""See `python tools/predict.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("predict")
