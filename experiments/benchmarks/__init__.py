"""Measuring: the one clock, rivals, and injected faults."""
