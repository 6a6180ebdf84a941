"""Experiments as plain values; see `base` for what each field means."""
