"""How the embedded benchmark, calibration corpus and model were made; nothing here runs in `make report`."""
