"""What we export, run by the program of the BioImage Model Zoo: `make interop`.

`bioimageio.core` 0.11 fails with pydantic 2.14, so it has an environment of its own, and `BIOIMAGEIO`
names its program there.
"""

import os
import shutil
import subprocess

import pytest

from tests.exchange.conftest import CHANNELS, save_kinds
from vcmodels.data.normalization import Normalization
from vcmodels.exchange import FORMS, Exported, write_model

PROGRAM = os.environ.get("BIOIMAGEIO") or shutil.which("bioimageio") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="BIOIMAGEIO names no program"),
]


@pytest.mark.parametrize("scheme", ["zscore", "percentile"])
@pytest.mark.parametrize("per", ["global", "volume"])
def test_the_program_of_the_zoo_accepts_a_package(tmp_path, scheme, per):
    """It reads the description, runs the weights, and compares with the test tensors."""
    way = Normalization(scheme, per, channels=CHANNELS if per == "global" else ())
    path = save_kinds(tmp_path / "net_best.pth", normalization=way.to_dict())
    package = tmp_path / "package"
    write_model(Exported.of(path, "CC-BY-4.0"), FORMS["bioimageio"], package)
    command = [PROGRAM, "test", str(package), "--weight-format", "onnx"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
