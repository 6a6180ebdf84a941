"""What trained networks are like inside."""
