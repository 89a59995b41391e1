"""Statistics that a training takes from the file that it starts from."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from vcmodels.checkpoint import Checkpoint
from vcmodels.config import NormalizationConfig
from vcmodels.data.normalization import ChannelStatistics, Normalization
from vcmodels.training.start import StartingPoint

ONE = ChannelStatistics(5.0, 2.0, 0.0, 9.0, 5.0, 2.0, 0.0, 9.0)


@pytest.mark.parametrize(("stored", "is_taken"), [(4, True), (1, False)])
def test_statistics_of_other_inputs_are_not_taken(stored, is_taken):
    """Four stored channels are none of one input with its three coordinates."""
    normalization = asdict(Normalization("zscore", channels=(ONE,) * 4))
    state = {"in_channels": 4, "normalization": normalization}
    given = Checkpoint(Path("a.pth"), "0" * 64, state)
    origin = StartingPoint(resumed=None, given=given, weights_only=True)
    volume = SimpleNamespace(channels=4, stored_channels=stored)
    assert (origin.normalization(volume, NormalizationConfig()) is not None) == is_taken
