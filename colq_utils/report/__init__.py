"""Reports, tables and figures, made from result files alone: no model, no stage, no torch."""
