"""Targets that are derived from another label, and pseudo-labels, through the command line."""

import json
import re

import numpy as np
import pytest

from vcmodels.cli import main
from vcmodels.volumes import create_array, open_volume

EXTENT = (20, 24, 40)


@pytest.fixture
def task(tmp_path):
    """Bricks as ids, their mask as a pseudo-label, and the centres that follow from the ids."""
    rng = np.random.default_rng(0)
    cells = np.zeros(EXTENT, np.uint32)
    for number, (z, y, x) in enumerate(np.ndindex(3, 4, 6), start=2**30):
        cells[6 * z + 1 : 6 * z + 6, 6 * y + 1 : 6 * y + 5, 6 * x + 1 : 6 * x + 6] = number
    image = (100 * (cells > 0) + rng.integers(0, 30, EXTENT)).astype(np.uint8)
    root = str(tmp_path / "data.zarr")
    for name, values in {"raw": image, "cells": cells, "mask": (cells > 0).astype("u1")}.items():
        array = create_array(root, name, shape=EXTENT, chunks=(8, 8, 8), dtype=values.dtype)
        array.write(open_volume(array.location, key=name).box, values[None])
    return {
        "tr_params": {
            "model_name": "tiny",
            "patch_size": [8, 8, 8],
            "tr_val_split": 0.6,
            "max_steps_per_epoch": 2,
            "max_val_steps_per_epoch": 2,
            "max_epoch": 1,
            "num_dataloader_workers": 0,
            "ckpt_out_base": str(tmp_path / "run"),
            "amp": "off",
            "compile": False,
        },
        "model_config": {"f_maps": [4, 8]},
        "inference_params": {"input_path": f"{root}/raw", "output_dir": str(tmp_path / "out")},
        "dataset_config": {
            "volume_paths": [
                {
                    "input": f"{root}/raw",
                    "mask": f"{root}/mask",
                    "cells": f"{root}/cells",
                    "ref_label": "cells",
                    "pseudo": {"mask": 0.25},
                }
            ],
            "targets": {
                "mask": {"kind": "binary"},
                "centres": {"derive": "cells", "max_extent": 5},
                "normals": {"derive": "cells"},
            },
        },
    }


@pytest.fixture
def command(task_file, capsys):
    def call(name, task, *words):
        code = main([name, str(task_file(task)), *words])
        captured = capsys.readouterr()
        assert captured.err.count("\n") == (code != 0), captured.err
        return code, captured.out + captured.err

    return call


def test_a_derived_target_is_trained_predicted_and_scored(command, task, tmp_path):
    assert command("train", task)[0] == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("centres" in json.dumps(line) for line in log)
    assert command("infer", task)[0] == 0
    code, said = command("evaluate", task, "--overlay", str(tmp_path / "o.png"))
    assert code == 0
    assert re.search("scoring centres, normals on", said), said  # and not the pseudo-label
    assert re.search(r"centres: correlation -?0\.", said)
    assert re.search(r"normals: angle_deg \d", said)
    assert (tmp_path / "o.png").stat().st_size > 1000


def test_the_plan_names_sources_and_pseudo_labels(command, task):
    code, said = command("check", task)
    assert code == 0
    for pattern in (
        r"cells \(ref\) +20 x 24 x 40 +uint32",
        r"mask \(pseudo 0\.25\)",
        r"centres +from cells",
    ):
        assert re.search(pattern, said), (pattern, said)


def changed(task, path, value):
    *parents, last = path
    place = task["dataset_config"]
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["targets", "centres", "derive"], "cels", 'derive: no volume has a label "cels"'),
        (["targets", "other", "derive"], "cels", 'derive: no volume has a label "cels"'),
        (["targets", "centres", "derive"], "centres", 'derive: "centres" is itself derived'),
        (["targets", "centres", "derive"], "input", 'derive: "input" can be no label'),
        (["targets", "cells"], {"derive": "mask"}, "targets.cells: .* several kinds"),
        (["targets", "mask", "derive"], "cells", "volume_paths.0.mask: .*is derived from|cannot"),
        (["volume_paths", 0, "centres"], "c.zarr", "volume_paths.0.centres: .*targets.centres is"),
        (["volume_paths", 0, "cells"], None, 'derive: no volume has a label "cells"'),
        (["volume_paths", 0, "ref_label"], "centres", 'ref_label: "centres" is no label of this'),
        (["volume_paths", 0, "pseudo", "x"], 0.5, "pseudo.x: is no label of this volume"),
        (["volume_paths", 0, "pseudo", "mask"], 2, "pseudo.mask: found 2; give a number above 0"),
        (["targets", "centres", "max_extent"], 300, "centres: .*much to read.*; give lengths such"),
        (["volume_paths", 0, "cells"], "none.zarr", "volume_paths.0.cells: .*none.zarr"),
    ],
)  # fmt: skip
def test_faults_are_one_line_and_exit_2(command, task, tmp_path, path, value, message):
    task["dataset_config"]["targets"]["other"] = task["dataset_config"]["targets"]["centres"].copy()
    task["dataset_config"]["targets"]["other"]["kind"] = "centres"
    changed(task, path, value)
    before = sorted(tmp_path.rglob("*"))
    code, said = command("train", task)
    assert code == 2
    assert re.search(message, said), said
    assert set(tmp_path.rglob("*")) - set(before) == {tmp_path / "task.json"}


def test_a_misspelt_source_is_told_where_both_ends_are(command, task):
    changed(task, ["targets", "centres", "derive"], "cels")
    changed(task, ["targets", "normals"], None)
    code, said = command("check", task)
    assert code == 2
    assert "volume_paths.0.cells: " in said
    assert 'did you mean "cels", which dataset_config.targets.centres is derived from?' in said


def test_a_source_of_vectors_is_refused_by_its_channels(command, task, tmp_path):
    array = create_array(
        str(tmp_path / "data.zarr"), "v", shape=(3, *EXTENT), chunks=(3, 8, 8, 8), dtype="uint8"
    )
    task["dataset_config"]["volume_paths"][0]["cells"] = array.location
    code, said = command("check", task)
    assert code == 2
    assert "volume_paths.0.cells: " in said
