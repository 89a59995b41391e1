"""Scores and pictures of stored predictions."""

from vcmodels.evaluation.evaluate import evaluate, score_volume
from vcmodels.pictures.overlay import Scored, write_overlay

__all__ = ["Scored", "evaluate", "score_volume", "write_overlay"]
