"""``python -m detkit train ...``: the same as ``detkit train ...``."""

from detkit.cli import main

if __name__ == "__main__":
    main()
