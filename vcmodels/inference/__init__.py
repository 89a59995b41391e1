"""Blended prediction of volumes of any size: one pass, bounded memory, exactly resumable."""

from vcmodels.blockwise import WHOLE, Part
from vcmodels.inference.cost import Estimate
from vcmodels.inference.devices import predict_on
from vcmodels.inference.many import run_inference
from vcmodels.inference.predict import (
    InferenceReport,
    predict_request,
    predict_volume,
)
from vcmodels.inference.predictor import Predictor, load_predictor
from vcmodels.inference.reproduction import Comparison, reproduce
from vcmodels.inference.request import Request, RunOptions, request_of

__all__ = [
    "WHOLE",
    "Comparison",
    "Estimate",
    "InferenceReport",
    "Part",
    "Predictor",
    "Request",
    "RunOptions",
    "load_predictor",
    "predict_on",
    "predict_request",
    "predict_volume",
    "reproduce",
    "request_of",
    "run_inference",
]
