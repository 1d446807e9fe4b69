"""See `python tools/show_config.py --help`."""

from detkit.app.show_config import main

if __name__ == "__main__":
    main()
