"""What a run needs to go on: checkpoints, and the state of a process."""
