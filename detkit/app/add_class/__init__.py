"""Classes that a trained detector learns from a few examples, without training."""
