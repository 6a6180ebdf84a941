"""The condensed form: of a layer, of a model, on disk."""
