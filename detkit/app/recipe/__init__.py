"""A recipe from data: an experiment file whose every line has its reason."""
