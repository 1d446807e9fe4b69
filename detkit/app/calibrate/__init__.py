"""After training: a threshold for each class that keeps a promise, and scores that are probabilities."""
