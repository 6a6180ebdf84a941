"""What masks mean: statistics, FLOPs, output norms."""
