import numpy as np
import pytest

from vcmodels.config import parse_task
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.volumes import (
    Description,
    Grid,
    create_array,
    open_volume,
    write_multiscale_group,
)
from vcmodels.volumes.places import write_json

EXTENT = (10, 14, 18)


@pytest.fixture
def store(tmp_path):
    """Writes an array (Z, Y, X) or (C, Z, Y, X) and opens it as a volume."""

    def write(name: str, values: np.ndarray, root: str = "data.zarr"):
        lead = values.shape[:-3]
        array = create_array(
            str(tmp_path / root),
            name,
            shape=values.shape,
            chunks=(*lead, 4, 5, 6),
            dtype=values.dtype,
        )
        volume = open_volume(array.location, key=name, channels="any", channel_axis="first")
        array.write(volume.box, values.reshape(-1, *values.shape[-3:]))
        return volume

    return write


class World:
    """A volume with labels, a prediction of it and the split of a run."""

    def __init__(self, folder, store) -> None:
        rng = np.random.default_rng(0)
        self.folder, self.store = folder, store
        self.sheet = rng.integers(0, 2, EXTENT, dtype=np.uint8)
        self.probability = rng.integers(0, 256, EXTENT, dtype=np.uint8)
        self.normals = rng.integers(1, 256, (3, *EXTENT), dtype=np.uint8)
        store("raw", rng.integers(0, 256, EXTENT, dtype=np.uint8))
        store("sheet", self.sheet)
        store("normals", self.normals)
        self.predict("sheet", BinaryTarget(), self.probability)
        self.predict("normals", NormalsTarget(channels=3), self.normals)
        self.split([[[6, 10], [0, 14], [3, 18]]])

    def predict(self, name, target, codes, *, complete=True) -> None:
        self.store(f"{name}/0", codes, root="out/net.zarr")
        notes = {"encoding": target.encoding(codes.dtype), "complete": complete}
        write_multiscale_group(
            str(self.folder / "out/net.zarr" / name),
            Grid(axes=("c", "z", "y", "x")[-codes.ndim :]),
            Description(name, {"vcmodels": notes}),
        )

    def split(self, val_regions, mode="spatial") -> None:
        (self.folder / "run").mkdir(exist_ok=True)
        split = {"volumes": ["scroll"], "val_regions": val_regions, "split_mode": mode}
        split["train_regions"] = [None] * len(val_regions)
        write_json(self.folder / "run/splits.json", split)

    def task(self, targets=("sheet", "normals"), **inference):
        data = str(self.folder / "data.zarr")
        task, _ = parse_task(
            {
                "tr_params": {
                    "model_name": "net",
                    "patch_size": [16, 16, 16],
                    "ckpt_out_base": str(self.folder / "run"),
                },
                "model_config": {"f_maps": [2, 4]},
                "inference_params": {
                    "input_path": f"{data}/raw",
                    "output_dir": str(self.folder / "out"),
                    **inference,
                },
                "dataset_config": {
                    "volume_paths": [
                        {
                            "input": f"{data}/raw",
                            "name": "scroll",
                            **{name: f"{data}/{name}" for name in targets},
                        }
                    ],
                    "targets": {
                        "sheet": {"kind": "binary"},
                        "normals": {"kind": "normals", "channels": 3},
                    },
                },
            },
            "test",
        )
        return task


@pytest.fixture
def world(tmp_path, store):
    return World(tmp_path, store)
