"""The report of one run, and the look of all figures."""
