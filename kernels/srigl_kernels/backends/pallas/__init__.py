"""Pallas kernels for accelerators."""
