"""See `python tools/compare.py --help`."""

from detkit.app.compare.tool import main

if __name__ == "__main__":
    main()
