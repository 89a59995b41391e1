"""Blended prediction of volumes of any size: one pass, bounded memory, exactly resumable."""

from vcmodels.inference.cost import Estimate
from vcmodels.inference.devices import predict_on
from vcmodels.inference.predict import InferenceReport, load_predictor, predict, run_inference
from vcmodels.inference.reproduction import Comparison, reproduce
from vcmodels.inference.units import WHOLE, Part

__all__ = [
    "WHOLE",
    "Comparison",
    "Estimate",
    "InferenceReport",
    "Part",
    "load_predictor",
    "predict",
    "predict_on",
    "reproduce",
    "run_inference",
]
