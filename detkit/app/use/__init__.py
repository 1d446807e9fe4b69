"""A trained detector used: evaluated, and run on images."""
