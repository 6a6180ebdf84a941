"""Grids of runs; see `base` for what each field means."""
