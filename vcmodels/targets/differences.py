"""By which keys two targets differ in what their logits mean, whatever they were trained with."""

from collections.abc import Iterator
from typing import Any

from vcmodels.targets.base import Target

_TRAINING_ONLY = {
    "activation", "output", "weight", "loss", "loss_only_on_label", "label_smoothing",
    "dilate_label", "ignore_label", "encoding", "output_range", "label_interpolation", "derive",
    "surface_of", "smoothing_sigma", "width", "between", "max_extent", "keep_cut", "sigma",
    "sigma_units",
}  # fmt: skip
"""Keys of a target that may differ from those it was trained with: they do not change its logits."""


def trained_differences(trained: Target, other: Target) -> Iterator[tuple[str, Any, Any]]:
    """Keys, with both values, by which two targets differ in what their logits mean."""
    before, now = trained.model_dump(), other.model_dump()
    for key in sorted(before.keys() | now.keys()):
        if key not in _TRAINING_ONLY and before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)
