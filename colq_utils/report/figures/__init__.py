"""Figures: of the reports (`quality`), of sizes and speed (`benchmark`), of pages and weights (`pictures`)."""
