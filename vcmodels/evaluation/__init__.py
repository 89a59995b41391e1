"""Scores and pictures of stored predictions."""

from vcmodels.evaluation.evaluate import score
from vcmodels.evaluation.task import TaskScores, evaluate

__all__ = ["TaskScores", "evaluate", "score"]
