import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.postprocess.crop import CropStep

SHAPE = (7, 12, 9)
PROBABILITIES = np.random.default_rng(0).random((3, *SHAPE)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 2**60, SHAPE).astype(np.uint64)
CODES = np.random.default_rng(2).integers(0, 256, SHAPE).astype(np.uint8)
SIGNED = {"scale": 16 / 255, "offset": -8.0}


@settings(max_examples=8, deadline=None)
@given(
    block=st.tuples(*(st.integers(3, 12),) * 3),
    case=st.sampled_from(
        [
            ("instances", IDS, {}, IDS, 0),
            ("binary", CODES, {"scale": 1 / 255, "offset": 0.0}, CODES, 0),
            ("distance", CODES, SIGNED, CODES, 128),
            ("multiclass", CODES, {"label_values": list(range(256))}, CODES, 0),
            (
                "multiclass",
                PROBABILITIES,
                {"label_values": [0, 4, 300]},
                np.array([0, 4, 300])[PROBABILITIES.argmax(0)],
                0,
            ),
        ]
    ),
    mask_kind=st.sampled_from(["binary", "instances", "multiclass"]),
)
def test_what_lies_outside_of_the_mask_is_0(tmp_path_factory, block, case, mask_kind):
    kind, values, encoding, kept, nothing = case
    mask = np.random.default_rng(3).random(SHAPE) < 0.5
    mask[:, :5] = False
    step = step_of(CropStep, {"values": "a", "mask": "b"})
    sources = {
        "values": source_of(values, kind, encoding=encoding),
        "mask": source_of(np.where(mask, 200, 0).astype(np.uint8), mask_kind),
    }
    found = run_step(step, sources, tmp_path_factory.mktemp("c"), block)
    np.testing.assert_array_equal(found, np.where(mask, kept, nothing))
    assert step.output_kind({"values": kind, "mask": mask_kind}) == kind
    form = step.form(sources)
    assert form.dtype == (np.uint16 if values is PROBABILITIES else values.dtype)
    if kind == "multiclass":
        assert form.encoding["label_values"] == encoding["label_values"]


def test_a_mask_is_needed():
    with pytest.raises(ValueError, match='"mask" is missing'):
        step_of(CropStep, "a")
