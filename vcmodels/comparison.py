"""What losses and metrics compare, in the words with which a target kind says what it predicts."""

from dataclasses import dataclass
from typing import Literal, get_args

Compared = Literal["masks", "classes", "values", "vectors", "directions", "instances"]
"""The forms of a prediction and its label, both (B, channels, Z, Y, X) float32.

- `masks`: K probabilities, each with a label in [0, 1] (a loss takes logits).
- `classes`: C probabilities (a loss takes logits), and one channel of class indices 0..C-1.
- `values`: C numbers, and as many in the label.
- `vectors`: three components, of a length that means something.
- `directions`: three components; the label is a unit vector, the length of the prediction is free.
- `instances`: one channel of ids in both, of any integer dtype and not float32; 0 is background.
"""


@dataclass(frozen=True, kw_only=True)
class Comparator:
    """Something that compares predictions with labels.

    Raises:
        ValueError: `compares` holds a word that is none of `Compared`.
    """

    compares: Compared | tuple[Compared, ...]
    """What it can be given: one form, or several."""

    def __post_init__(self) -> None:
        """Refuse a misspelt form, which would fit no target."""
        for form in self._forms:
            if form not in get_args(Compared):
                known = ", ".join(get_args(Compared))
                raise ValueError(f'nothing compares "{form}"; choose from {known}')

    def fits(self, predicted: Compared) -> bool:
        """Whether it compares what a target kind predicts."""
        return predicted in self._forms

    @property
    def _forms(self) -> tuple[Compared, ...]:
        return self.compares if isinstance(self.compares, tuple) else (self.compares,)
