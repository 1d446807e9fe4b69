"""See `python tools/replay.py --help`."""

from detkit.app.replay import main

if __name__ == "__main__":
    main()
