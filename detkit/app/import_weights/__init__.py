"""``tools/import.py``: a detector of another library as a checkpoint of detkit's."""
