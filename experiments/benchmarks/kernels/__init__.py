"""Microbenchmarks of condensed layers beside their rivals, on CPU and GPU."""
