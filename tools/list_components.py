"""See `python tools/list_components.py --help`."""

from detkit.app.list_components import main

if __name__ == "__main__":
    main()
