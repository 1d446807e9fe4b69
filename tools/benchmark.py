"""See `python tools/benchmark.py --help`."""

from detkit.app.benchmark import main

if __name__ == "__main__":
    main()
