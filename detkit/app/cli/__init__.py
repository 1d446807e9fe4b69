"""Command lines: read, composed, checked, and their mistakes told."""
