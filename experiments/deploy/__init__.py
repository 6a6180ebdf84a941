"""Trained networks on their way to use: exported files and running them."""
