"""The same weights in nnU-Net itself and here, on scans of a hippocampus: `make interop`.

nnunetv2 is in no extra of ours: it is run with the interpreter that `NNUNET_PYTHON` names, or with this one if
it is installed there. `HIPPOCAMPUS` names the Zarr of the cases (Medical Segmentation Decathlon, task 4).
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr

from vcmodels.cli import main
from vcmodels.volumes import open_volume

PROGRAM = os.environ.get("NNUNET_PYTHON") or (
    sys.executable if importlib.util.find_spec("nnunetv2") else ""
)
CASES = os.environ.get("HIPPOCAMPUS", "")
LEAST = 0.999
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not PROGRAM, reason="nnunetv2 is not installed; NNUNET_PYTHON names none"),
    pytest.mark.skipif(not CASES, reason="HIPPOCAMPUS names no Zarr with cases"),
]


def write_cases(raw: Path) -> None:
    """Ten cases to train on, and four to predict, as nnU-Net wants them."""
    group = zarr.open_group(CASES, mode="r")
    names = sorted(group.group_keys())
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / part).mkdir(parents=True)
    for number, name in enumerate(names[:14]):
        image, part = np.asarray(group[f"{name}/raw"], np.float32), "Tr" if number < 10 else "Ts"
        save(image, raw / f"images{part}/{name}_0000.nii.gz")
        if part == "Tr":
            label = np.asarray(group[f"{name}/labels/hippocampus"], np.uint8)
            save(label, raw / f"labelsTr/{name}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"}, "numTraining": 10, "file_ending": ".nii.gz",
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(description))


def save(array, path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)), path)


@pytest.mark.parametrize("planner", ["ExperimentPlanner", "nnUNetPlannerResEncM"])
def test_labels_are_those_of_nnunet(tmp_path, planner):
    write_cases(raw := tmp_path / "raw/Dataset004_Hippocampus")
    script = Path(__file__).with_name("nnunet_reference.py")
    command = [PROGRAM, str(script), str(tmp_path), planner, "40"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(ran.stdout.strip().splitlines()[-1])
    trained, start = Path(told["trained"]), time.perf_counter()
    pattern, out = str(raw / "imagesTs/*_0000.nii.gz"), tmp_path / "out"
    assert main(["infer", str(trained / "fold_0"), pattern, "-o", str(out), "--quiet"]) == 0
    seconds = time.perf_counter() - start
    shares = {}
    for path in sorted((tmp_path / f"predicted_{trained.name}").glob("*.nii.gz")):
        theirs = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
        (result,) = out.glob(f"*/{path.name.removesuffix('.nii.gz')}*.zarr")
        ours = open_volume(str(result / "segmentation"), key="test")
        shares[path.name] = float((ours.read(ours.box)[0] == theirs).mean())
    sys.stdout.write(f"{planner}: {shares}; {seconds:.1f} s, nnU-Net {told['seconds']:.1f} s\n")
    assert len(shares) == 4
    assert min(shares.values()) >= LEAST, shares
