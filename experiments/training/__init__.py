"""Training one network: from a config to results."""
