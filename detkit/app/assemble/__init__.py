"""From a configuration to a trainer, and from a checkpoint to a detector."""
