"""Packages of the BioImage Model Zoo by other programs, next to onnxruntime and NumPy by hand."""

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from vcmodels.cli import main
from vcmodels.errors import CheckpointError
from vcmodels.exchange import _pack, load_network
from vcmodels.exchange.foreign_package import Package
from vcmodels.exchange.graph import quiet
from vcmodels.inference import load_predictor
from vcmodels.volumes import ArrayVolume

pytest.importorskip("bioimageio.spec")
ort = pytest.importorskip("onnxruntime")

SIZE = (8, 12, 16)
ZMUV = {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "z", "y", "x"]}}


class Net(nn.Module):
    """Two convolutions."""

    def __init__(self, channels=2, rank=3):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.a, self.b = conv(1, 4, 3, padding=1), conv(4, channels, 3, padding=1)

    def forward(self, image):
        return self.b(torch.relu(self.a(image)))


def weights_of(net, path, rank=3):
    """The ONNX of a network, for any size."""
    axes = {n: {2 + axis: f"n{axis}" for axis in range(rank)} for n in ("raw", "out")}
    image = torch.zeros(1, 1, *(8,) * rank)
    with quiet():
        torch.onnx.export(
            net.eval(), (image,), str(path), dynamo=False, opset_version=17,
            input_names=["raw"], output_names=["out"], dynamic_axes=axes,
        )  # fmt: skip


def axis(name, size, **more):
    return {"type": "space", "id": name, "size": size, **more}


def image_of(shape=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return (100 + 20 * rng.normal(size=shape)).astype(np.float32)


def write_package(folder, steps=(ZMUV,), after=({"id": "sigmoid"},), rank="zyx", change=None):
    """A package with a random network, whose test output is made by hand; returns the network."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net = Net(rank=len(rank)).eval()
    weights_of(net, folder / "w.onnx", len(rank))
    raw = image_of()[None, None] if rank == "zyx" else image_of(SIZE[1:])[None, None]
    np.save(folder / "in.npy", raw)
    np.save(folder / "out.npy", by_hand(folder, raw))
    first = [{"type": "batch"}, {"type": "channel", "channel_names": ["grey"]}]
    two = [{"type": "batch"}, {"type": "channel", "channel_names": ["wall", "lumen"]}]
    same = [axis(a, {"tensor_id": "raw", "axis_id": a}, halo=1) for a in rank]
    said = {
        "type": "model", "format_version": "0.5.4", "name": "some net", "description": "one",
        "authors": [{"name": "A B"}], "cite": [{"text": "t", "doi": "10.1234/abc"}],
        "license": "MIT", "documentation": "README.md",
        "inputs": [{
            "id": "raw", "data": {"type": "float32"}, "test_tensor": {"source": "in.npy"},
            "axes": [*first, *(axis(a, {"min": 4, "step": 4}) for a in rank)],
            "preprocessing": [*steps],
        }],
        "outputs": [{
            "id": "prob", "data": {"type": "float32"}, "test_tensor": {"source": "out.npy"},
            "axes": [*two, *same], "postprocessing": [*after],
        }],
        "weights": {"onnx": {"source": "w.onnx", "opset_version": 17}},
    }  # fmt: skip
    if change:
        change(said)
    (folder / "README.md").write_text("# some net")
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    return net


def normalized(raw):
    return (raw - raw.mean()) / (raw.std() + 1e-6)


def by_hand(folder, raw):
    """What onnxruntime gives of an image with its own mean and deviation, after a sigmoid."""
    session = ort.InferenceSession(str(folder / "w.onnx"))
    (logits,) = session.run(None, {"raw": normalized(raw).astype(np.float32)})
    return 1 / (1 + np.exp(-logits))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "package"
    write_package(folder)
    return folder


def test_it_predicts_what_its_own_graph_gives(package):
    """Channels of a sigmoid are masks by name, and the patch is that of the test image."""
    predictor, image = load_predictor(package), image_of(seed=1)
    assert list(predictor.targets) == ["prob_wall", "prob_lumen"]
    assert predictor.patch == SIZE
    found = predictor.predict(image)
    wanted = by_hand(package, image[None, None])[0]
    for number, name in enumerate(predictor.targets):
        np.testing.assert_allclose(found[name], wanted[number], atol=2e-6)
    (note,) = predictor.networks[0].notes
    assert "gives its own test output, largest error" in note


def test_the_command_takes_it_as_an_archive_too(package, phantom, tmp_path, capsys):
    archive = tmp_path / "package.zip"
    _pack(package, archive)
    for number, model in enumerate((package, archive)):
        result = str(tmp_path / f"{number}.zarr")
        assert main(["infer", str(model), str(phantom / "ct"), "-o", result]) == 0
        assert "largest error" in capsys.readouterr().out
        assert (tmp_path / f"{number}.zarr" / "prob_wall").is_dir()


def test_it_takes_the_sizes_that_it_says(package):
    network = load_network(package)
    network.check_patch((8, 16, 20))
    with pytest.raises(ValueError, match=r"patch_size \[8, 16, 18\].*4 \+ n \* 4"):
        network.check_patch((8, 16, 18))
    assert network.task.inference_params.overlaps == (0.25, 0.25, 0.25)


def test_an_image_model_goes_through_the_slices(tmp_path):
    write_package(
        tmp_path / "flat", [{**ZMUV, "kwargs": {"axes": ["channel", "y", "x"]}}], rank="yx"
    )
    predictor, volume = load_predictor(tmp_path / "flat"), image_of((3, *SIZE[1:]), 2)
    assert predictor.patch == (1, 12, 16)
    found = predictor.predict(volume)["prob_lumen"]
    session = ort.InferenceSession(str(tmp_path / "flat" / "w.onnx"))
    scaled = normalized(volume).astype(np.float32)
    for one, slice_ in zip(found, scaled, strict=True):
        (logits,) = session.run(None, {"raw": slice_[None, None]})
        np.testing.assert_allclose(one, 1 / (1 + np.exp(-logits[0, 1])), atol=2e-6)
    assert any("whole volume, not in a slice" in note for note in predictor.networks[0].notes)


def test_an_older_description_is_read_too(tmp_path):
    """Specification 0.4: axes as letters, the channel last, numbers of the data set."""
    folder = tmp_path / "old"
    folder.mkdir()
    weights = nn.Conv2d(1, 1, 1)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = weights

        def forward(self, image):  # (B, Y, X, C)
            return self.inner(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    with quiet():
        torch.onnx.export(
            Last().eval(), (torch.zeros(1, 12, 16, 1),), str(folder / "w.onnx"), dynamo=False,
            opset_version=17, input_names=["raw"], output_names=["out"],
        )  # fmt: skip
    raw = image_of((1, 12, 16, 1))
    a, b = weights.weight.item(), weights.bias.item()
    np.save(folder / "in.npy", raw)
    np.save(folder / "out.npy", ((raw - 90) / 7 * a + b).astype(np.float32))
    (folder / "README.md").write_text("# old")
    said = {
        "type": "model", "format_version": "0.4.10", "name": "older net", "description": "one",
        "authors": [{"name": "A B"}], "cite": [{"text": "t", "doi": "10.1234/abc"}],
        "license": "MIT", "documentation": "README.md", "timestamp": "2023-01-01T00:00:00",
        "inputs": [{"name": "raw", "axes": "byxc", "data_type": "float32", "shape": [1, 12, 16, 1],
                    "preprocessing": [{"name": "zero_mean_unit_variance", "kwargs": {
                        "mode": "fixed", "axes": "yx", "mean": 90.0, "std": 7.0}}]}],
        "outputs": [{"name": "out", "axes": "byxc", "data_type": "float32",
                     "shape": [1, 12, 16, 1]}],
        "test_inputs": ["in.npy"], "test_outputs": ["out.npy"],
        "weights": {"onnx": {"source": "w.onnx", "opset_version": 17}},
    }  # fmt: skip
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    predictor, volume = load_predictor(folder), image_of((2, 12, 16), 3)
    assert predictor.networks[0].normalization.channels[0].mean == pytest.approx(90)
    (found,) = predictor.predict(volume).values()
    np.testing.assert_allclose(found, (volume - 90) / 7 * a + b, atol=1e-5)


ALL = ["channel", "z", "y", "x"]
CHAINS = {
    "scale": ([{"id": "scale_linear", "kwargs": {"gain": 0.02, "offset": -1.5}}], lambda v: 0.02 * v - 1.5),
    "scale_clip": (
        [{"id": "scale_linear", "kwargs": {"gain": 0.02, "offset": -1.5}},
         {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}}],
        lambda v: np.clip(0.02 * v - 1.5, 0, 1),
    ),
    "fixed": ([{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 99.0, "std": 3.0}}], lambda v: (v - 99) / 3),
    "range": (
        [{"id": "scale_range", "kwargs": {"axes": ALL, "min_percentile": 1.0, "max_percentile": 99.8}}],
        lambda v: (v - np.percentile(v, 1)) / (np.ptp(np.percentile(v, [1, 99.8])) + 1e-6),
    ),
    "range_clip": (
        [{"id": "scale_range", "kwargs": {"axes": ALL, "min_percentile": 5.0, "max_percentile": 95.0}},
         {"id": "clip", "kwargs": {"min": 0.0, "max": 0.8}},
         {"id": "scale_linear", "kwargs": {"gain": 2.0, "offset": -1.0}}],
        lambda v: 2 * np.clip((v - np.percentile(v, 5)) / np.ptp(np.percentile(v, [5, 95])), 0, 0.8) - 1,
    ),
    "cut": (
        [{"id": "clip", "kwargs": {"min_percentile": 5.0, "max_percentile": 95.0, "axes": ALL}}, ZMUV],
        lambda v: normalized(np.clip(v, *np.percentile(v, [5, 95]))),
    ),
    "mask": ([{"id": "binarize", "kwargs": {"threshold": 101.0}}], lambda v: v > 101),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_steps_are_what_numpy_makes_of_them(package, tmp_path, name):
    """Of an image that is mostly one value, which our own schemes would leave out."""
    steps, expected = CHAINS[name]
    said = yaml.safe_load((package / "rdf.yaml").read_text())
    said["inputs"][0]["preprocessing"] = steps
    for file in package.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(said))
    image = image_of((20, 24, 40), 4)
    image[:, :, :18] = 97
    found = Package.read(tmp_path, "rdf.yaml", tmp_path).steps()
    way = found.normalization()
    stats = None
    if way.per == "volume":
        volume = ArrayVolume.of(image, (1.0, 1.0, 1.0), "image")
        stats = way.of_volume((volume,), volume.box)
    given = torch.from_numpy(way.apply(image[None], stats)[None])
    for step in found.last:
        given = step(given)
    np.testing.assert_allclose(given[0, 0].numpy(), expected(image.astype(float)), atol=2e-5)


def refused(folder, match, **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_network(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ([{"id": "scale_linear", "kwargs": {"gain": -1.0, "offset": 0.0}}], "the step scale_linear with gain -1"),
        ([{"id": "scale_linear", "kwargs": {"gain": 2.0, "offset": 0.0}}, ZMUV], "zero_mean_unit_variance after"),
        ([{**ZMUV, "kwargs": {"axes": ["y", "x"]}}], "the step zero_mean_unit_variance along x, y only"),
        ([{"id": "ensure_dtype", "kwargs": {"dtype": "uint8"}}], "the step ensure_dtype to uint8"),
    ],
)  # fmt: skip
def test_steps_without_a_counterpart_are_refused_by_name(package, tmp_path, steps, match):
    write_package(tmp_path / "p", steps)
    refused(tmp_path / "p", match)


def test_a_package_that_does_not_give_its_test_output_is_refused(package, tmp_path):
    write_package(tmp_path / "p")
    wrong = np.load(tmp_path / "p" / "out.npy")
    wrong[0, 1, 3, 4, 5] += 0.01
    np.save(tmp_path / "p" / "out.npy", wrong)
    refused(tmp_path / "p", "prob_lumen differs from its own test output by 0.01")


def test_damaged_and_distant_files_are_refused(tmp_path):
    def hashed(said):
        said["weights"]["onnx"]["sha256"] = hashlib.sha256(b"other").hexdigest()

    def distant(said):
        said["weights"]["onnx"]["source"] = "https://example.org/w.onnx"

    def outside(said):
        said["weights"]["onnx"]["source"] = "../../w.onnx"

    write_package(tmp_path / "a", change=hashed)
    refused(tmp_path / "a", "sha256 of w.onnx differs")
    write_package(tmp_path / "b", change=distant)
    refused(tmp_path / "b", "lie elsewhere .*; download")
    write_package(tmp_path / "c", change=outside)
    refused(tmp_path / "c", "not in it|no valid model")
    write_package(tmp_path / "d")
    (tmp_path / "d" / "w.onnx").write_bytes(b"nothing")
    refused(tmp_path / "d", "its ONNX cannot be read")
    (tmp_path / "d" / "rdf.yaml").write_text("[")
    refused(tmp_path / "d", "is no YAML")


CODE = """
from pathlib import Path
from torch import nn
import torch
Path({canary!r}).write_text("ran")
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1)
    def forward(self, image):
        return self.b(torch.relu(self.a(image)))
"""


def with_code(folder: Path, weights: bytes, canary: Path, kind="pytorch_state_dict"):
    code = CODE.format(canary=str(canary)).encode()

    def change(said):
        (folder / "net.py").write_bytes(code)
        (folder / "w.pt").write_bytes(weights)
        entry = {"source": "w.pt", "pytorch_version": "2.1"}
        entry["sha256"] = hashlib.sha256(weights).hexdigest()
        if kind == "pytorch_state_dict":
            sha256 = hashlib.sha256(code).hexdigest()
            entry["architecture"] = {"source": "net.py", "callable": "Own", "sha256": sha256}
        said["weights"] = {kind: entry}

    return write_package(folder, change=change)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_code_of_a_package_runs_only_when_it_is_trusted(tmp_path, capsys):
    canary, folder = tmp_path / "canary", tmp_path / "p"
    torch.manual_seed(0)
    with_code(folder, saved(Net().state_dict()), canary)
    refused(folder, r"needs Own in net\.py, which is code .*; read it, then give --trust")
    assert not canary.exists()
    np.save(tmp_path / "scan.npy", image_of())
    network = load_network(folder, trust=True)
    assert canary.exists()
    assert "running Own in net.py" in network.notes[0]
    image = image_of(seed=5)
    found = load_predictor(folder, trust=True).predict(image)["prob_wall"]
    np.testing.assert_allclose(found, by_hand(folder, image[None, None])[0, 0], atol=2e-6)


def test_torchscript_runs_only_when_it_is_trusted(tmp_path):
    buffer, folder = io.BytesIO(), tmp_path / "p"
    torch.manual_seed(0)
    with quiet():
        torch.jit.save(torch.jit.trace(Net().eval(), torch.zeros(1, 1, *SIZE)), buffer)
    with_code(folder, buffer.getvalue(), tmp_path / "canary", "torchscript")
    refused(folder, r"needs the TorchScript w\.pt, which is code")
    network = load_network(folder, trust=True)
    assert network.is_fixed
    with pytest.raises(Exception, match="in one process only"):
        pickle.dumps(network.module)


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.write_text, (self.canary, "ran")


@pytest.mark.parametrize("is_trusted", [False, True])
def test_a_pickle_that_would_run_code_does_not(tmp_path, is_trusted):
    folder, canary = tmp_path / "p", tmp_path / "evil"
    with_code(folder, saved({"a.weight": Evil(canary)}), tmp_path / "canary")
    refused(folder, r"w\.pt holds more than tensors", trust=is_trusted)
    assert not canary.exists()
