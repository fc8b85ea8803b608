"""The bundled benchmark, mteb's view of it, calibration text and sample items."""
