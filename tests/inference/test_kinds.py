"""From a checkpoint file to stored predictions, for every kind of target."""

import numpy as np
import pytest
import torch

from tests.inference.conftest import EXTENT, make_task, save, stored
from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.errors import RunError, VolumeError
from vcmodels.inference import RunOptions, run_inference
from vcmodels.volumes import Storage, create_array, open_volume

SHAPES = {"sheet": EXTENT, "organ": EXTENT, "normals": (3, *EXTENT), "fibre": (3, *EXTENT)}


def test_every_asked_target_is_written_in_its_own_form(place):
    task = make_task(place)
    save(place, task)
    run_inference(task)
    for name, shape in SHAPES.items():
        volume, values = stored(place, name)
        assert (volume.channels, *volume.extent)[-len(shape) :] == shape
        assert (volume.spacing, volume.unit) == ((2.0, 0.5, 0.25), "micrometer")
        assert values.dtype == np.uint8
        decoded = task.dataset_config.targets[name].decode(values)
        if name in ("normals", "fibre"):
            np.testing.assert_allclose(np.linalg.norm(decoded, axis=0), 1, atol=0.02)
    assert not (place / "out/net.zarr/depth").exists()
    assert set(np.unique(stored(place, "organ")[1])) <= {0, 2, 7}


def test_a_prediction_is_the_network_applied_by_hand(place):
    task = make_task(place, overlap=0, output_targets=["sheet"], output_type="float32")
    save(place, task)
    run_inference(task)
    predictor = build_network(load_checkpoint(place / "run" / "net_best.pth"))
    images = [stored_input(place, name)[0, :16, :16, :16] for name in ("ct", "dose")]
    image = torch.from_numpy(predictor.normalization.apply(np.stack(images).astype(np.float32)))[
        None
    ]
    with torch.inference_mode():
        expected = predictor.module(image)["sheet"][0].sigmoid()[0]
    # The next patches, moved back to end with the volume, begin at 4, 16 and 10.
    alone = np.s_[:, :4, :16, :10]
    np.testing.assert_allclose(stored(place, "sheet")[1][alone], expected[alone], atol=1e-6)


def stored_input(place, name):
    volume = open_volume(str(place / "in.zarr" / name), key="x")
    return volume.read(volume.box)


def test_statistics_per_volume_are_those_of_the_new_volume(place):
    """A brighter, wider copy of the input gives the same prediction."""
    task = make_task(
        place,
        {"scheme": "zscore", "per": "volume"},
        output_targets=["depth"],
        output_type="float32",
    )
    save(place, task, per="volume")
    run_inference(task)
    before = stored(place, "depth")[1]
    array = create_array(
        str(place / "in.zarr"), "brighter", shape=EXTENT, chunks=(8, 16, 16), dtype="f4"
    )
    bright = stored_input(place, "ct").astype(np.float32) * 3 + 100
    array.write(open_volume(str(place / "in.zarr/brighter"), key="x").box, bright)
    paths = [str(place / "in.zarr" / name) for name in ("brighter", "dose")]
    other = make_task(
        place, {"scheme": "zscore", "per": "volume"}, output_targets=["depth"], output_type="float32",
        input_path=paths,
    )  # fmt: skip
    run_inference(other, options=RunOptions(overwrite=True))
    np.testing.assert_allclose(stored(place, "depth")[1], before, atol=1e-4)


def test_equal_voxels_have_equal_predictions_however_they_are_stored(place):
    values = stored_input(place, "ct")[0]
    values[:, 16:], values[8:16, :, :16] = 0, 0
    how = {
        "absent": ((8, 16, 16), Storage()),
        "stored": ((8, 16, 16), Storage(write_empty_chunks=True)),
        "shards": ((4, 8, 8), Storage(3, shards=(8, 8, 16))),
        "fill": ((20, 5, 26), Storage(3, fill_value=9)),
    }
    found = {}
    for name, (chunks, storage) in how.items():
        store = str(place / f"{name}.zarr")
        array = create_array(
            store, "ct", shape=EXTENT, chunks=chunks, dtype=values.dtype, storage=storage
        )  # fmt: skip
        array.write(open_volume(array.location).box, values[None])
        task = make_task(
            place, {"per": "volume"}, output_targets=["depth"], output_type="float32",
            input_path=[array.location, str(place / "in.zarr/dose")], skip={"fill": False},
        )  # fmt: skip
        save(place, task, per="volume")
        run_inference(task, options=RunOptions(overwrite=True))
        found[name] = stored(place, "depth")[1]
    for values in found.values():
        np.testing.assert_array_equal(values, found["absent"])


def test_a_missing_channel_is_refused(place):
    task = make_task(place)
    save(place, task)
    with pytest.raises(VolumeError, match="1 channels, the network was trained with 2"):
        run_inference(make_task(place, input_path=str(place / "in.zarr/ct")))


def test_a_damaged_chunk_is_named_and_nothing_is_written_that_depends_on_it(place):
    task = make_task(place)
    save(place, task)
    chunk = place / "in.zarr/ct/2/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"ct.*chunk \(2, 0, 0\)"):
        run_inference(task)
    assert not (place / "out/net.zarr/sheet/0/1/0/0").exists()
