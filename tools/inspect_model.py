"""See `python tools/inspect_model.py --help`."""

from detkit.app.inspect_model import main

if __name__ == "__main__":
    main()
