"""One file a method: its topology update and its optax wrapper together."""
