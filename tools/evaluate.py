"""See `python tools/evaluate.py --help`."""

from detkit.app.evaluate import main

if __name__ == "__main__":
    main()
