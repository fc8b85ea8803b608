"""The GPU encode path and what is measured of its kernels; `model` never imports it."""
