"""Figures of quality, of speed and memory, and of pages."""
