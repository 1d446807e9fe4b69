"""detkit timed, for those who make it."""
