"""What a detector sees and what it costs, without training it."""
