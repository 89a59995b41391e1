"""Training: from a task to checkpoints, exactly resumable."""

from vcmodels.training.train import train

__all__ = ["train"]
