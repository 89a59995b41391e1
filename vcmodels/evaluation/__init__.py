"""Scores and pictures of stored predictions."""

from vcmodels.evaluation.evaluate import evaluate, score, score_result

__all__ = ["evaluate", "score", "score_result"]
