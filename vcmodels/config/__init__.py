"""The task file: every key, default, range and message."""

from vcmodels.config.inference_params import InferenceParams, Skip
from vcmodels.config.load import LoadedTask, load_task, parse_task
from vcmodels.config.schema import task_schema
from vcmodels.config.task import (
    DatasetConfig,
    NormalizationConfig,
    SplitAttribute,
    Task,
    VolumeEntry,
)
from vcmodels.config.train_params import TrainingParams

__all__ = [
    "DatasetConfig",
    "InferenceParams",
    "LoadedTask",
    "NormalizationConfig",
    "Skip",
    "SplitAttribute",
    "Task",
    "TrainingParams",
    "VolumeEntry",
    "load_task",
    "parse_task",
    "task_schema",
]
