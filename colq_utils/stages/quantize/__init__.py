"""Base checkpoint and calibration set to quantized checkpoints, proven to load and to agree with the base."""

from colq_utils.stages.quantize.acceptance import COSINE_AIM, COSINE_BAR, accept
from colq_utils.stages.quantize.make import run

__all__ = ["COSINE_AIM", "COSINE_BAR", "accept", "run"]
