"""Configuration, files, processes, provenance: what knows nothing of models."""
