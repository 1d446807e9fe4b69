"""Which detkit this is; checkpoints and reports hold it."""

__version__ = "0.1.0"
