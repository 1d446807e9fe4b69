"""After training: why objects are missed and others made up."""
