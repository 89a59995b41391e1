"""Packages of the BioImage Model Zoo: valid, with our normalisation said in the steps of the specification."""

import numpy as np
import pytest
import torch
import yaml

from tests.exchange.conftest import CHANNELS, EVERY_KIND, predicted, save_kinds
from vcmodels.cli import main
from vcmodels.data.normalization import ChannelStatistics, Normalization
from vcmodels.errors import OutputError
from vcmodels.exchange import FORMS, Exported, _pack, bioimageio, load_network, write_model
from vcmodels.exchange.graph import quiet

pytest.importorskip("bioimageio.spec")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def package(trained):
    """As a folder, exported by the command with what the run folder knows."""
    path = trained.parent / "package"
    options = ["--to", "bioimageio", "-o", str(path), "--license", "CC-BY-4.0"]
    assert main(["export", str(trained), *options]) == 0
    return path


def test_it_holds_the_description_the_weights_the_card_and_test_tensors(package):
    names = {path.name for path in package.iterdir()}
    assert names == {"README.md", "image.npy", "model.onnx", "normals.npy", "rdf.yaml", "sheet.npy"}
    said = yaml.safe_load((package / "rdf.yaml").read_text())
    assert said["license"] == "CC-BY-4.0"
    assert [axis.get("size") for axis in said["inputs"][0]["axes"][2:]] == [16, 24, 16]
    assert said["outputs"][0]["postprocessing"] == [{"id": "sigmoid"}]
    assert said["config"]["vcmodels"]["tiling"]["overlap"] == [0.25, 0.25, 0.25]


def test_the_card_says_data_scores_split_licence_and_how_it_was_made(package):
    text = (package / "README.md").read_text()
    for found in (
        "| scroll.zarr/ct | [24, 96, 56] |", "| dice_sheet | 0.", "Divided by `spatial`",
        "CC-BY-4.0", "`tiny_best.pth`, sha256", "largest error of this file against the network",
    ):  # fmt: skip
        assert found in text, found
    assert str(package.parent) not in text


def test_the_weights_give_the_test_tensors_from_the_stored_values(package):
    network = load_network(package)
    raw = np.load(package / "image.npy")
    assert raw.mean() > 20  # values of the scan, not normalised ones
    image = torch.from_numpy(network.normalization.apply(raw[0])[None])
    sheet = network.module(image, ["sheet"])["sheet"][0].sigmoid().numpy()
    np.testing.assert_allclose(np.load(package / "sheet.npy"), sheet, atol=1e-4)


def test_bioimageio_core_runs_it(package):
    core = pytest.importorskip("bioimageio.core")
    with quiet():
        summary = core.test_model(package / "rdf.yaml", weight_format="onnx", devices=["cpu"])
    assert summary.status == "passed", summary.errors


def test_inference_takes_the_folder_and_an_archive(package, trained, phantom, tmp_path):
    archive = tmp_path / "package.zip"
    _pack(package, archive)
    options = ["--set", "inference_params.amp=off", "--quiet"]
    for number, model in enumerate((trained, package, archive)):
        result = str(tmp_path / f"{number}.zarr")
        assert main(["infer", str(model), str(phantom / "ct"), "-o", result, *options]) == 0
    wanted, *found = (predicted(tmp_path / f"{number}.zarr") for number in range(3))
    for codes in found:
        for name in wanted:
            assert np.abs(codes[name] - wanted[name]).max() <= 1


def run_steps(steps, image):
    """The steps of the specification that we use, in NumPy, on (C, Z, Y, X)."""
    for step in steps:
        kwargs = {k: v for k, v in step["kwargs"].items() if k not in ("axis", "axes")}
        columns = {
            k: np.reshape(v, (-1, 1, 1, 1)) if isinstance(v, list) else v for k, v in kwargs.items()
        }
        axes = tuple("czyx".index(a[0]) for a in step["kwargs"].get("axes", ()))
        match step["id"]:
            case "fixed_zero_mean_unit_variance":
                image = (image - columns["mean"]) / columns["std"]
            case "scale_linear":
                image = image * columns["gain"] + columns["offset"]
            case "clip":
                image = np.clip(image, columns["min"], columns["max"])
            case "zero_mean_unit_variance":
                spread = image.std(axes, keepdims=True) + 1e-6
                image = (image - image.mean(axes, keepdims=True)) / spread
            case "scale_range":
                ends = [kwargs.get("min_percentile", 0), kwargs.get("max_percentile", 100)]
                low, high = np.percentile(image, ends, axis=axes, keepdims=True)
                image = (image - low) / (high - low + 1e-6)
    return image


WAYS = [
    (scheme, per)
    for scheme in ("zscore", "ct", "minmax", "percentile", "none")
    for per in ("global", "patch")
]


@pytest.mark.parametrize(("scheme", "per"), [way for way in WAYS if way != ("ct", "patch")])
def test_the_steps_of_the_specification_do_what_our_normalisation_does(tmp_path, scheme, per):
    way = Normalization(scheme, per, channels=CHANNELS if per == "global" else ())
    path = save_kinds(tmp_path / "net_best.pth", normalization=way.to_dict())
    image = np.random.default_rng(0).normal(90, 50, (2, 8, 12, 16)).astype(np.float32)
    found = run_steps(bioimageio.preprocessing(Exported.of(path)), image)
    np.testing.assert_allclose(found, way.apply(image), atol=2e-3 if per == "patch" else 1e-5)


def test_what_the_specification_cannot_say_is_refused(tmp_path):
    others = (CHANNELS[0], ChannelStatistics(9.0, 2.0, 1.0, 30.0, 4.0, 15.0, 8.0, 1.5))
    way = Normalization("ct", channels=others)
    path = save_kinds(tmp_path / "net_best.pth", normalization=way.to_dict())
    with pytest.raises(OutputError, match="clips each channel at values of its own"):
        write_model(Exported.of(path), FORMS["bioimageio"], tmp_path / "package")
    assert [one.name for one in tmp_path.iterdir()] == ["net_best.pth"]
    path = save_kinds(path, normalization=Normalization("ct", "volume").to_dict())
    with pytest.raises(OutputError, match="measures each volume after clipping it"):
        write_model(Exported.of(path), FORMS["bioimageio"], tmp_path / "package")


def test_names_of_targets_become_names_of_the_specification(tmp_path):
    targets = {
        "Sheet-1": EVERY_KIND["sheet"],
        "sheet_1": EVERY_KIND["sheet"],
        "2": EVERY_KIND["sheet"],
    }
    path = save_kinds(tmp_path / "net_best.pth", targets, calibration={})
    model = Exported.of(path)
    found = [bioimageio.tensor_id(model, name) for name in targets]
    assert found == ["t0_sheet_1", "t1_sheet_1", "t2_2"]


def test_a_licence_that_is_no_spdx_name_is_refused_at_once(every_kind, tmp_path, capsys):
    options = ["--to", "bioimageio", "-o", str(tmp_path / "package"), "--license", "my own"]
    assert main(["export", str(every_kind), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert '--license: "my own" is no name of spdx.org/licenses' in line
    assert not list(tmp_path.iterdir())
