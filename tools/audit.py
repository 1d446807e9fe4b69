"""See `python tools/audit.py --help`."""

from detkit.app.audit import main

if __name__ == "__main__":
    main()
