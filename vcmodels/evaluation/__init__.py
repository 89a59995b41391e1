"""Scores and pictures of stored predictions."""

from vcmodels.evaluation.evaluate import evaluate, score_volume
from vcmodels.pictures.overlay import DrawnTarget, write_overlay

__all__ = ["DrawnTarget", "evaluate", "score_volume", "write_overlay"]
