"""``tools/publish.py``: a checkpoint to be given away, with a card."""
