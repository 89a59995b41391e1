"""Bundles: run by MONAI from a file, with the normalisation and the values of the network."""

import json

import numpy as np
import pytest
import torch

from tests.exchange.conftest import CHANNELS, PATCH
from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.data.normalization import Normalization
from vcmodels.exchange import FORMS, Exported, load_network, monai_bundle, write_model
from vcmodels.exchange.graph import quiet

nibabel = pytest.importorskip("nibabel")
bundle = pytest.importorskip("monai.bundle")


@pytest.fixture(scope="module")
def written(every_kind):
    path = every_kind.parent / "bundle"
    write_model(Exported.of(every_kind), FORMS["monai_bundle"], path)
    return path


def test_monai_predicts_a_file_as_the_network_does(written, every_kind, tmp_path):
    stored = np.random.default_rng(0).integers(0, 255, (*PATCH[::-1], 2)).astype(np.float32)
    nibabel.Nifti1Image(stored, np.diag([0.25, 0.5, 2.0, 1.0])).to_filename(
        tmp_path / "image.nii.gz"
    )
    parser = bundle.ConfigParser()
    with quiet():
        parser.read_config(written / monai_bundle.INFERENCE)
        parser.update({
            "bundle_root": str(written), "input": str(tmp_path / "image.nii.gz"),
            "output_dir": str(tmp_path / "out"),
        })  # fmt: skip
        parser.parse(reset=True)
        parser.get_parsed_content("run")
    network = build_network(load_checkpoint(every_kind))
    image = network.normalization.apply(np.moveaxis(stored, -1, 0).transpose(0, 3, 2, 1))
    with torch.inference_mode():
        logits = network.module(torch.from_numpy(image)[None])
    wanted = {
        "sheet": (logits["sheet"][0] / 1.5).sigmoid(),
        "organ": logits["organ"][0].softmax(1),
        "normals": logits["normals"][0],
    }
    for name, values in wanted.items():
        found = nibabel.load(tmp_path / "out" / f"image_{name}.nii.gz")
        given = np.asarray(found.dataobj).reshape(*PATCH[::-1], -1)
        np.testing.assert_allclose(given.transpose(3, 2, 1, 0), values[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(found.affine, np.diag([0.25, 0.5, 2.0, 1.0]))


def test_metadata_card_and_record_travel_with_it(written, every_kind):
    said = json.loads((written / monai_bundle.METADATA).read_text())
    assert said["network_data_format"]["inputs"]["image"]["spatial_shape"] == list(PATCH)
    assert said["vcmodels"]["outputs"]["sheet"]["temperature"] == 1.5
    assert "## How it was made" in (written / monai_bundle.CARD).read_text()
    wanted, found = build_network(load_checkpoint(every_kind)), load_network(written)
    assert (found.targets, found.normalization) == (wanted.targets, wanted.normalization)


@pytest.mark.parametrize("scheme", ["zscore", "ct", "minmax", "percentile"])
@pytest.mark.parametrize("per", ["global", "patch"])
def test_the_transforms_do_what_our_normalisation_does(scheme, per):
    way = Normalization(scheme, per, channels=CHANNELS if per == "global" else ())
    image = np.random.default_rng(0).normal(90, 50, (2, 8, 12, 16)).astype(np.float32)
    parser = bundle.ConfigParser({
        "imports": ["$import torch"],
        "steps": {"_target_": "Compose", "transforms": monai_bundle.normalizing(way)},
    })  # fmt: skip
    with quiet():
        found = parser.get_parsed_content("steps")(torch.from_numpy(image.copy()))
    np.testing.assert_allclose(found, way.apply(image), atol=2e-3 if per == "patch" else 1e-5)
