"""Blocks that two processes do."""

import numpy as np
import pytest

from vcmodels.geometry.boxes import Box
from vcmodels.postprocess.site import write_once
from vcmodels.volumes import create_array, open_volume


@pytest.mark.parametrize("lead", [(), (2,)])
def test_who_comes_late_changes_nothing_and_what_is_wrong_is_written(tmp_path, lead):
    array = create_array(
        str(tmp_path), "ids", shape=(*lead, 8, 10, 12), chunks=(*lead, 4, 5, 6), dtype="uint16"
    )
    rng, box = np.random.default_rng(0), Box((4, 0, 6), (4, 10, 6))
    values = rng.integers(1, 9, (*(lead or (1,)), *box.shape)).astype(np.uint16)

    def stored():
        return open_volume(array.location, key="ids", channels="any")

    write_once(array, box, values)
    print_of_it = stored().fingerprint()
    np.testing.assert_array_equal(stored().read(box), values)
    write_once(array, box, values.copy())
    assert stored().fingerprint() == print_of_it
    chunk = next(path for path in array.files(box) if path.exists())
    chunk.write_bytes(chunk.read_bytes()[:-3])
    write_once(array, box, values)
    np.testing.assert_array_equal(stored().read(box), values)
    other = values.copy()
    other[..., -1, -1, -1] = 77
    write_once(array, box, other)
    np.testing.assert_array_equal(stored().read(box), other)
    write_once(array, box, np.zeros_like(other))
    assert not stored().read(box).any()
