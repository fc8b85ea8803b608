"""Measurements of a GPU without a variant, which the benchmark stage runs if an experiment lists them."""
