"""Grids of runs: what they are, running them, and what their results say."""
