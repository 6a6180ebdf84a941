"""Exported C code measured: latency on this machine, size, instructions of a Cortex-M."""
