"""See `python tools/train.py --help`."""

from detkit.app.train import main

if __name__ == "__main__":
    main()
