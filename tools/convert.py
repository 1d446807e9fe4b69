"""See `python tools/convert.py --help`."""

from detkit.app.convert import main

if __name__ == "__main__":
    main()
