"""The ColQwen3 itself: names, files, loading, kernels, packing, encoding, scoring."""
