"""What knows nothing of detection: processes, logging, seeds, files, precision."""
