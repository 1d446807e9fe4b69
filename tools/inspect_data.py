"""See `python tools/inspect_data.py --help`."""

from detkit.app.inspect_data import main

if __name__ == "__main__":
    main()
