"""See `python -m detkit.app.compare --help`."""

from detkit.app.compare.tool import main

if __name__ == "__main__":
    main()
