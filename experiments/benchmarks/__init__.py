"""The one clock, comparisons and their baselines, and injected faults."""
