"""Blended prediction of volumes of any size: one pass, bounded memory, exactly resumable."""

from vcmodels.inference.estimate import Estimate
from vcmodels.inference.run import InferenceReport, predict, run_inference

__all__ = ["Estimate", "InferenceReport", "predict", "run_inference"]
