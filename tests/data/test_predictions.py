"""Predictions of ours as labels: read by their own encoding, and by how sure the network was."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from vcmodels.data.predictions import PredictedLabel
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.patches.find import search_patches
from vcmodels.patches.resolve import Resolved
from vcmodels.reporting import Silent
from vcmodels.samples.training_set import training_set
from vcmodels.targets import AnyTarget
from vcmodels.targets.stored import KEY
from vcmodels.volumes import Description, Grid, create_array, open_volume, write_multiscale_group

SHAPE = (10, 12, 14)
PARSER = TypeAdapter(AnyTarget)


@pytest.fixture
def predicted(tmp_path):
    """Writes a prediction (P, Z, Y, X) as inference does; returns the location of its group."""
    count = iter(range(100))

    def write(block, prediction, dtype, version=3, **notes):
        target = PARSER.validate_python(block)
        codes = target.encode(torch.from_numpy(prediction.astype(np.float32)), np.dtype(dtype))
        root = str(tmp_path / f"out{next(count)}" / "net.zarr")
        channels = target.output_channels(np.dtype(dtype))
        lead = () if channels is None else (channels,)
        array = create_array(
            root, "t/0", shape=(*lead, *SHAPE), chunks=(*lead, 5, 6, 7), dtype=codes.dtype
        )
        array.write(open_volume(array.location, channels="any").box, codes.reshape(-1, *SHAPE))
        axes = ("c", "z", "y", "x") if lead else ("z", "y", "x")
        noted = {"encoding": target.encoding(codes.dtype), "complete": True, **notes}
        write_multiscale_group(f"{root}/t", Grid(axes=axes), Description("t", {KEY: noted}))
        return f"{root}/t"

    return write


@pytest.fixture
def opened(make_task, store):
    """The volume of a task whose label is a prediction, and what was said."""
    image = store("raw", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))

    def opened(location, block, entry=None, **sections):
        entry = {"input": image, "t": location, "ref_label": "t", **(entry or {})}
        task = make_task([entry], {"t": block}, **sections)
        reporter = Silent()
        (volume,) = open_volumes(task, reporter)
        return task, volume, reporter.lines

    return opened


@pytest.fixture
def read(opened):
    """Label and valid voxels of a target."""

    def read(location, block, entry=None):
        task, volume, _ = opened(location, block, entry)
        label = volume.label("t", task.dataset_config.targets["t"], volume.region)
        return label.read(volume.region)

    return read


@pytest.fixture
def probability():
    """(1, *SHAPE), with codes at both ends."""
    values = np.random.default_rng(1).random((1, *SHAPE))
    values[0, 0, 0, :4] = 0, 1, 0.49, 0.51
    return values


MASK = {"kind": "binary"}


@pytest.mark.parametrize("level", ["", "/0"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_a_probability_is_a_mask_above_a_half(predicted, read, probability, dtype, level):
    label, valid = read(predicted(MASK, probability, dtype) + level, MASK)
    clear = np.abs(probability - 0.5) > 0.003
    assert (label == (probability > 0.5))[clear].all()
    assert valid.all()


def test_logits_are_a_mask_above_0(predicted, read, probability):
    logits = {"kind": "binary", "activation": "none"}
    stored = predicted(
        logits,
        np.log(probability.clip(1e-6, 1 - 1e-6) / (1 - probability.clip(1e-6, 1 - 1e-6))),
        "float32",
    )
    np.testing.assert_array_equal(read(stored, MASK)[0], probability > 0.5)
    _, valid = read(stored, MASK, {"pseudo": {"t": {"min_confidence": 0.8}}})
    np.testing.assert_array_equal(valid, np.maximum(probability, 1 - probability) >= 0.8)


def test_a_stated_foreground_is_compared_with_the_probability(predicted, read, probability):
    label, _ = read(predicted(MASK, probability, "uint8"), {**MASK, "foreground": ">= 0.7"})
    clear = np.abs(probability - 0.7) > 0.003
    assert (label == (probability >= 0.7))[clear].all()


def test_voxels_that_are_not_sure_do_not_count(predicted, opened, read, probability):
    location = predicted(MASK, probability, "uint8")
    entry = {"pseudo": {"t": {"min_confidence": 0.9, "weight": 0.25}}}
    _, valid = read(location, MASK, entry)
    sure = np.maximum(probability, 1 - probability)
    clear = np.abs(sure - 0.9) > 0.003
    assert (valid == (sure >= 0.9))[clear].all()
    _, volume, lines = opened(location, MASK, entry)
    assert (volume.pseudo, volume.split) == ({"t": 0.25}, "train")
    assert [line.split(": ", 1)[1] for line in lines[-2:]] == [
        "t is a prediction of ours, read by its own encoding, where its confidence is 0.9 or more",
        "pseudo-labels, not validated against: t (weight 0.25)",
    ]
    _, volume, lines = opened(location, MASK)
    assert lines[-1].endswith('it counts as a true label unless "pseudo" names it')
    assert volume.labels["t"].fingerprint() != open_volume(location).fingerprint()


def test_classes_are_read_with_their_values(predicted, read):
    rng = np.random.default_rng(2)
    shares = rng.dirichlet([1, 1, 1], SHAPE).transpose(3, 0, 1, 2)
    block = {"kind": "multiclass", "channels": 3, "label_values": [0, 4, 9]}
    best = shares.argmax(0)[None]
    label, valid = read(predicted(block, shares, "uint8"), block)
    np.testing.assert_array_equal(label, best)
    assert valid.all()
    both = {**block, "output": "probabilities"}
    entry = {"pseudo": {"t": {"min_confidence": 0.6}}}
    label, valid = read(predicted(both, shares, "float32"), block, entry)
    sure = shares.max(0, keepdims=True) >= 0.6
    np.testing.assert_array_equal(valid, sure)
    np.testing.assert_array_equal(label, np.where(sure, best, 0))
    mask = {"kind": "binary", "foreground": "== 4, 9"}
    np.testing.assert_array_equal(read(predicted(block, shares, "uint8"), mask)[0], best > 0)


@pytest.mark.parametrize("orders", [("xyz", "zyx"), ("zyx", "xyz")])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_normals_keep_their_components_in_any_order(predicted, read, dtype, orders):
    normals = np.random.default_rng(3).normal(size=(3, *SHAPE))
    normals /= np.linalg.norm(normals, axis=0)
    normals[:, 4:6] = 0  # no prediction
    written, wanted = ({"kind": "normals", "vector_order": order} for order in orders)
    label, valid = read(predicted(written, normals, dtype), wanted)
    np.testing.assert_array_equal(valid, (normals != 0).any(0, keepdims=True))
    np.testing.assert_allclose(label, normals, atol=0.012)
    # Keys about a stored label of another program say nothing of ours.
    odd = {**wanted, "encoding": {"scale": 0.5, "offset": 3.0, "zero_code": 7}}
    np.testing.assert_allclose(read(predicted(written, normals, dtype), odd)[0], label, atol=1e-5)


def test_lengths_and_numbers_keep_their_scale(predicted, read):
    values = np.random.default_rng(4).uniform(-4, 4, (1, *SHAPE))
    distance = {"kind": "distance", "clip": 4.0}
    label, _ = read(predicted(distance, values, "uint8"), distance)
    np.testing.assert_allclose(label * 4, values, atol=0.017)
    label, _ = read(predicted(distance, values, "uint16"), {"kind": "distance", "clip": 2.0})
    np.testing.assert_allclose(label * 2, values.clip(-2, 2), atol=1e-3)
    flow = {"kind": "vector", "output_range": [-5.0, 5.0], "vector_order": "zyx"}
    vectors = np.concatenate([values, -values, values / 2])
    label, _ = read(predicted(flow, vectors, "uint16"), {**flow, "vector_order": "xyz"})
    np.testing.assert_allclose(label, vectors, atol=1e-3)
    soft = {"kind": "regression", "activation": "sigmoid", "loss": "bce"}
    shares = (values + 4) / 8
    np.testing.assert_allclose(read(predicted(MASK, shares, "uint8"), soft)[0], shares, atol=0.003)


@pytest.mark.parametrize(
    ("written", "wanted", "entry", "message"),
    [
        (MASK, {"kind": "centres"}, {}, 'of kind binary: no label of kind "centres"'),
        (MASK, {"kind": "multiclass"}, {}, 'of kind binary: no label of kind "multiclass"'),
        ({"kind": "distance", "clip": 2.0}, {"kind": "distance", "clip": 4.0}, {}, "its clip is 2.0"),
        ({"kind": "distance", "clip": 2.0}, {"kind": "distance", "clip": 2.0, "signed": False}, {}, "its signed is True"),
        ({"kind": "distance", "clip": 2.0}, {"kind": "distance", "clip": 2.0}, 0.9, "holds no confidence for min_confidence; leave it out"),
        (MASK, MASK, 0.5, "min_confidence 0.5 leaves out nothing: all is 0.5 sure or more"),
    ],
)  # fmt: skip
def test_what_is_no_such_label_is_refused(
    predicted, opened, probability, written, wanted, entry, message
):
    location = predicted(written, probability, "uint8")
    entry = {"pseudo": {"t": {"min_confidence": entry}}} if entry else {}
    with pytest.raises(VolumeError, match=f"volume_paths.0.t: .*{message}"):
        opened(location, wanted, entry)


def test_axes_are_no_oriented_normals(predicted, opened):
    axes = {"kind": "normals", "orientation": "axial"}
    location = predicted(axes, np.ones((3, *SHAPE)), "uint8")
    with pytest.raises(VolumeError, match="its orientation is axial, that of the target oriented"):
        opened(location, {"kind": "normals"})
    opened(predicted({"kind": "normals"}, np.ones((3, *SHAPE)), "uint8"), axes)


def test_a_result_that_is_not_whole_or_not_known_is_refused(predicted, opened, probability, store):
    with pytest.raises(VolumeError, match="is not finished; run infer again"):
        opened(predicted(MASK, probability, "uint8", complete=False), MASK)
    strange = {"encoding": {"kind": "sorcery"}}
    with pytest.raises(VolumeError, match="is a prediction of an encoding that is not known"):
        opened(predicted(MASK, probability, "uint8", **strange), MASK)
    plain = store("plain", (probability[0] > 0.5).astype(np.uint8))
    with pytest.raises(
        VolumeError, match="is no prediction of vcmodels, which min_confidence is for"
    ):
        opened(plain, MASK, {"pseudo": {"t": {"min_confidence": 0.9}}})
    with pytest.raises(TaskError, match=r"pseudo.t.min_confidence: found 1.5"):
        opened(plain, MASK, {"pseudo": {"t": {"min_confidence": 1.5}}})


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_training_takes_what_is_sure_by_its_weight(predicted, opened, probability, cache_gb):
    entry = {"pseudo": {"t": {"min_confidence": 0.9, "weight": 0.25}}}
    location = predicted(MASK, probability, "uint8")
    task, volume, _ = opened(
        location, MASK, entry, tr_val_split=1, patch_jitter=False, chunk_cache_gb=cache_gb
    )
    assert isinstance(volume.labels["t"], PredictedLabel)
    stored = open_volume(location).read(volume.region)[0] / 255
    patches = search_patches(task, [volume])
    dataset = training_set(Resolved(task, [volume]))
    for draw in range(min(len(patches.rows), 4)):
        item, (z, y, x) = dataset[draw], dataset.place(draw).origin
        part = stored[z : z + 8, y : y + 8, x : x + 8]
        sure = np.maximum(part, 1 - part) >= 0.9
        np.testing.assert_array_equal(item["valid"]["t"][0], sure)
        np.testing.assert_array_equal(item["labels"]["t"][0], (part > 0.5) & sure)
        assert item["weight"]["t"] == 0.25


def test_labels_are_derived_from_what_is_sure(predicted, make_task, store, probability):
    image = store("raw", np.zeros(SHAPE, np.float32))
    pseudo = {"q": {"min_confidence": 0.9, "weight": 0.5}}
    entry = {"input": image, "q": predicted(MASK, probability, "uint8"), "pseudo": pseudo}
    task = make_task([entry], {"m": {"kind": "binary", "derive": "q"}})
    reporter = Silent()
    (volume,) = open_volumes(task, reporter)
    label, valid = volume.label("m", task.dataset_config.targets["m"], volume.region).read(
        volume.region
    )
    sure = np.maximum(probability, 1 - probability)
    clear = np.abs(sure - 0.9) > 0.003
    assert (valid == (sure >= 0.9))[clear].all()
    assert (label == ((probability > 0.5) & valid)).all()
    assert "unless" not in " ".join(reporter.lines)
    derived = {**entry, "pseudo": {"m": {"min_confidence": 0.9}}}
    with pytest.raises(
        TaskError, match=r'pseudo.m.min_confidence: is derived; give it to its source, "q"'
    ):
        make_task([derived], {"m": {"kind": "binary", "derive": "q"}})
