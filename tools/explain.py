"""See `python tools/explain.py --help`."""

from detkit.app.explain import main

if __name__ == "__main__":
    main()
