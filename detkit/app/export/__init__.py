"""``tools/export.py``: a detector as a file for other runtimes, which checks itself."""
