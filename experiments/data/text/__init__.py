"""Text to model, as tokens."""
