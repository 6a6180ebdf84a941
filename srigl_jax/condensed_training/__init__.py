"""Training in condensed form: values and indices from initialisation to export, never a mask."""
