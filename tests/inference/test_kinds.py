"""From a checkpoint file to stored predictions, for every kind of target."""

import numpy as np
import pytest
import torch

from vcmodels.checkpoint import build_predictor, load_checkpoint, save_checkpoint
from vcmodels.config import parse_task
from vcmodels.data.normalization import ChannelStatistics, Normalization
from vcmodels.errors import RunError, VolumeError
from vcmodels.inference import run_inference
from vcmodels.volumes import Grid, create_array, open_volume

EXTENT = (20, 33, 26)
TARGETS = {
    "sheet": {"channels": 1, "activation": "sigmoid"},
    "organ": {"channels": 3, "kind": "multiclass", "label_values": [0, 2, 7]},
    "depth": {"channels": 1, "kind": "regression"},
    "normals": {"channels": 3, "kind": "normals"},
    "fibre": {"channels": 3, "kind": "normals", "orientation": "axial"},
}
SHAPES = {"sheet": EXTENT, "organ": EXTENT, "normals": (3, *EXTENT), "fibre": (3, *EXTENT)}


@pytest.fixture
def place(tmp_path):
    """Two inputs and an untrained network that stacks them."""
    rng = np.random.default_rng(0)
    for name, dtype, top in (("ct", "uint8", 255), ("dose", "uint16", 60000)):
        values = rng.integers(0, top, EXTENT).astype(dtype)
        array = create_array(
            str(tmp_path / "in.zarr"),
            name,
            shape=EXTENT,
            chunks=(8, 16, 16),
            dtype=dtype,
            grid=Grid((2.0, 0.5, 0.25), unit="micrometer"),
        )
        array.write(open_volume(str(tmp_path / "in.zarr" / name), key="x").box, values[None])
    return tmp_path


def make_task(place, normalization="zscore", **inference):
    task, _ = parse_task(
        {
            "tr_params": {
                "model_name": "net",
                "patch_size": [16, 16, 16],
                "ckpt_out_base": str(place / "run"),
                "num_dataloader_workers": 1,
            },
            "model_config": {"name": "residual_unet", "f_maps": [4, 8]},
            "inference_params": {
                "input_path": [str(place / "in.zarr/ct"), str(place / "in.zarr/dose")],
                "output_dir": str(place / "out"),
                "output_targets": ["sheet", "organ", "normals", "fibre"],
                "output_chunks": [16, 16, 16],
                "device": "cpu",
            }
            | inference,
            "dataset_config": {
                "normalization": normalization,
                "volume_paths": [{"input": ["a", "b"], **{name: name for name in TARGETS}}],
                "targets": TARGETS,
            },
        },
        "test",
    )
    return task


def save(place, task, per="global"):
    torch.manual_seed(0)
    heads = {name: target.channels for name, target in task.dataset_config.targets.items()}
    spacing = (2.0, 0.5, 0.25)
    network = task.model.build(2, heads, (16, 16, 16), spacing)
    stats = tuple(
        ChannelStatistics(m, s, 0, 2 * m, 0, 2 * m, m, s) for m, s in ((128.0, 70.0), (3e4, 2e4))
    )
    normalization = Normalization("zscore", per, channels=stats if per == "global" else ())
    state = {
        "schema": 1, "task": task.to_json(), "model": network.state_dict(), "ema": None,
        "in_channels": 2, "patch_size": [16, 16, 16], "spacing": list(spacing),
        "normalization": normalization.to_dict(),
    }  # fmt: skip
    (place / "run").mkdir(exist_ok=True)
    save_checkpoint(place / "run" / "net_best.pth", state)


def stored(place, name):
    volume = open_volume(str(place / "out/net.zarr" / name), key="x", channels="any")
    return volume, volume.read(volume.box)


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
    predictor = build_predictor(load_checkpoint(place / "run" / "net_best.pth"))
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
    run_inference(other, overwrite=True)
    np.testing.assert_allclose(stored(place, "depth")[1], before, atol=1e-4)


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
