"""Scores and pictures of stored predictions."""

from vcmodels.evaluation.evaluate import evaluate
from vcmodels.evaluation.overlay import Scored, write_overlay
from vcmodels.evaluation.score import score_volume

__all__ = ["Scored", "evaluate", "score_volume", "write_overlay"]
