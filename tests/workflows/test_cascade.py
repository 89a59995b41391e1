import numpy as np
import pytest

from vcmodels.cli import main
from vcmodels.config import load_task
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import VolumeError
from vcmodels.reporting import Silent
from vcmodels.volumes import Grid, write_volume
from vcmodels.workflows import cascade

SHAPE = (24, 20, 18)


@pytest.fixture
def task(tmp_path, task_file):
    _, y, x = np.mgrid[tuple(map(slice, SHAPE))]
    cord = ((y - 9) ** 2 + (x - 8) ** 2 < 10).astype(np.uint8)
    for name in ("image", "cord"):
        write_volume(
            str(tmp_path / f"{name}.zarr"), cord, grid=Grid((2.0, 1.0, 1.0), unit="millimeter"),
            chunks=(8, 8, 8),
        )  # fmt: skip

    def write(*sources):
        region = {"from": list(sources), "radius_mm": 5} if sources else None
        entry = {"input": f"{tmp_path}/image.zarr", "lesion": f"{tmp_path}/cord.zarr", "name": "a"}
        return str(
            task_file(
                {
                    "tr_params": {"model_name": "b", "patch_size": [8, 8, 8]},
                    "dataset_config": {
                        "volume_paths": [entry],
                        "targets": {"lesion": {"channels": 1, "activation": "sigmoid"}},
                        "region": region,
                    },
                }
            )
        )

    return write


def test_the_command_says_what_found_each_region_and_where(task, tmp_path, capsys):
    assert main(["region", task({"mask": f"{tmp_path}/cord.zarr"})]) == 0
    said = capsys.readouterr().out
    assert "[0, 24]x[4, 15]x[3, 14]" in said
    assert main(["region", task()]) == 2
    assert "dataset_config.region: is not set" in capsys.readouterr().err


def test_what_a_network_finds_is_known_to_all_that_opens_the_volumes(task, monkeypatch):
    path = task({"checkpoint": "a.pth", "sha256": "a" * 64})
    loaded = load_task(path).task
    with pytest.raises(VolumeError, match="has not run on it yet; run vcmodels region"):
        open_volumes(loaded)

    class Segmenter:
        def __init__(self, *_):
            pass

        def __call__(self, source, volume):
            image = volume.inputs[0]
            yield image.box, image.read(image.box)[0].astype(float)

    monkeypatch.setattr(cascade, "Segmenter", Segmenter)
    found = cascade.find_regions(loaded, Silent())
    (volume,) = open_volumes(loaded)
    assert volume.inputs[0].extent == found["a"].box.shape == (24, 11, 11)
