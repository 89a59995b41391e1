"""Planted faults, one for each check, and data without a fault."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vcmodels.audit import Audit, audit_task
from vcmodels.audit.base import Finding
from vcmodels.audit.checks import CHECKS
from vcmodels.audit.layout import amplification, touched
from vcmodels.audit.page import page
from vcmodels.cli import main

SHAPE = (24, 40, 32)


def scan(seed=0, shape=SHAPE):
    """An image of smooth blobs with noise, uint8, and the mask of the blobs."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=shape), 3)
    mask = smooth > smooth.std()
    image = 60 + 90 * gaussian_filter(mask.astype(float), 0.5) + rng.normal(scale=4, size=shape)
    return image.round().astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture
def volume(store):
    """Writes an image and a label, and returns the entry of a task."""

    def write(name, image=None, label=None, chunks=(8, 8, 8), **keys):
        own_image, own_label = scan(len(name))
        image = own_image if image is None else image
        label = own_label if label is None else label
        spacing = keys.pop("voxel", (2.0, 2.0, 2.0))
        return {
            "input": store(f"{name}/ct", image, chunks, spacing=spacing),
            "sheet": store(f"{name}/sheet", label, (8, 8, 8), spacing=spacing),
            "ref_label": "sheet",
            "name": name,
            **keys,
        }

    return write


@pytest.fixture
def found(make_task):
    """The findings of a check on a task over some entries."""

    def find(check, *entries, **keys) -> list[Finding]:
        return list(audit_task(make_task(list(entries), **keys), "task.json").findings[check])

    return find


def test_data_without_a_fault_gives_no_finding(make_task, volume):
    entries = [volume("a", split="train"), volume("bb", split="val")]
    audit = audit_task(make_task(entries), "task.json")
    assert audit.every == []
    assert list(audit.findings) == [check.name for check in CHECKS]


def test_a_short_volume_is_noted_as_it_is_when_volumes_are_opened(found, volume):
    image, label = scan()
    (finding,) = found("opening", volume("a", image[:6], label[:6]))
    assert finding.severity == "note"
    assert "shorter than the patch" in finding.found


def test_voxel_sizes_that_are_unknown_or_far_apart_are_found(found, volume):
    far = volume("a"), volume("bb", voxel=(2.0, 2.0, 3.2))
    (finding,) = found("spacing", *far)
    assert finding.severity == "warning"
    assert finding.figures["factors"] == [1, 1, pytest.approx(1.6)]
    (finding,) = found("spacing", volume("c"), volume("dd", voxel=None))
    assert "of dd is unknown" in finding.found


@pytest.mark.parametrize(
    ("patch", "chunks", "extent"),
    [((5, 7, 4), (8, 3, 4), (64, 33, 40)), ((9, 2, 5), (4, 16, 5), (36, 64, 25))],
)
def test_the_amplification_is_that_of_all_places(patch, chunks, extent):
    """Counted over the offsets of a patch far from the ends, axis by axis."""
    decoded = files = 1.0
    for p, c in zip(patch, chunks, strict=True):
        units = np.mean([len({v // c for v in range(o, o + p)}) for o in range(100 * c, 101 * c)])
        decoded, files = decoded * units * c / p, files * units
    assert amplification(patch, chunks, (10**6,) * 3) == pytest.approx(decoded)
    assert touched(patch, chunks, (10**6,) * 3) == pytest.approx(files)
    assert amplification(patch, chunks, extent) <= amplification(patch, chunks, (10**6,) * 3)
    assert amplification(extent, chunks, extent) == pytest.approx(
        np.prod([-(-n // c) * c / n for n, c in zip(extent, chunks, strict=True)])
    )


def test_chunks_that_cost_much_are_found_with_the_factor(found, volume):
    (finding,) = found("layout", volume("a", chunks=(24, 40, 32)))
    assert finding.figures["read_amplification"] == pytest.approx(24 * 40 * 32 / 8**3)
    assert finding.figures["chunks"] == [24, 40, 32]


def test_labels_where_no_image_is_stored_are_found(found, volume):
    image, label = scan()
    image[8:16, 16:24] = 0  # a block of the fill value is not written
    label[:] = 0
    label[:2] = 1
    entry = volume("a", image, label)
    assert found("stored", entry) == []
    label[10, 20, :] = 1
    (finding,) = found("stored", volume("bb", image, label))
    assert finding.figures["blocks"] == 4
    assert "(8, 16, 0)" in finding.found


def faulty_images():
    image, _ = scan()
    flat, cut, few = np.full_like(image, 7), image.copy(), image // 32
    cut[image > 120] = 255
    floats = image.astype(np.float32)
    nan, infinite = floats.copy(), floats.copy()
    nan[3, 4:9], infinite[1, 2, 3] = np.nan, np.inf
    yield pytest.param(flat, "error", "looked at are 7", id="flat")
    yield pytest.param(cut, "warning", "are 255, the largest value", id="cut")
    yield pytest.param(few, "warning", "different values", id="few")
    yield pytest.param(nan, "warning", "are NaN", id="nan")
    yield pytest.param(infinite, "error", "are infinite", id="infinite")


@pytest.mark.parametrize(("image", "severity", "words"), list(faulty_images()))
def test_faults_of_images_are_found(found, volume, image, severity, words):
    (finding,) = found("images", volume("a", image))
    assert finding.severity == severity
    assert words in finding.found


def test_a_damaged_chunk_is_reported_and_the_rest_looked_at(found, volume, tmp_path):
    entry = volume("a")
    for path in (tmp_path / "data.zarr/a/ct").rglob("c/0/0/0"):
        path.write_bytes(b"\x28\xb5\x2f\xfdno")
    (finding,) = found("images", entry)
    assert finding.severity == "error"
    assert "a cannot be read" in finding.found


def test_a_volume_of_another_scale_is_found_unless_normalisation_undoes_it(found, volume):
    entries = [volume("a"), volume("bb"), volume("ccc", scan()[0].astype(np.uint16) * 100)]
    (finding,) = found(
        "intensities", *entries, dataset={"normalization": {"scheme": "zscore", "per": "global"}}
    )
    assert finding.severity == "warning"
    assert finding.figures["volumes"] == ["ccc"]
    (finding,) = found("intensities", *entries)
    assert finding.severity == "note"


def test_raw_values_among_hounsfield_units_are_found(found, volume):
    image = scan()[0].astype(np.int16)
    image = (image - image.min()) * 10
    entries = [volume("a", image - 1000), volume("bb", image - 1010), volume("ccc", image)]
    raw = [f for f in found("intensities", *entries) if "begin at air" in f.found]
    assert [f.severity for f in raw] == ["warning"]
    assert raw[0].found.startswith("ccc:")


def test_values_that_cannot_be_and_empty_labels_are_found(found, volume):
    _, label = scan()
    bad = label.astype(np.int16)
    bad[2, 3, 4] = -7
    (finding,) = found("labels", volume("a", label=bad))
    assert (finding.severity, "(2, 3, 4)" in finding.found) == ("error", True)
    empty = volume("bb", label=np.zeros_like(label))
    (finding,) = found("labels", volume("ccc"), empty)
    assert finding.figures["volumes"] == ["bb"]
    (finding,) = found("labels", volume("dddd"), volume("eeeee", label=np.full_like(label, 1)))
    assert "is 1 everywhere" in finding.found


def run(tmp_path, entries, *arguments, capsys):
    data = {
        "tr_params": {
            "model_name": "t",
            "patch_size": [8, 8, 8],
            "ckpt_out_base": str(tmp_path / "r"),
        },
        "model_config": {"name": "residual_unet", "f_maps": [4, 8], "num_levels": 2},
        "dataset_config": {"volume_paths": entries, "targets": {"sheet": {"kind": "binary"}}},
    }
    task = tmp_path / "task.json"
    task.write_text(json.dumps(data))
    code = main(["audit", str(task), *arguments])
    return code, capsys.readouterr()


def test_the_exit_code_follows_the_severity(tmp_path, volume, capsys):
    good = [volume("a")]
    assert run(tmp_path, good, "--fail-on", "note", capsys=capsys)[0] == 0
    cut = [volume("bb", np.where(scan()[0] > 120, 255, scan()[0]).astype(np.uint8))]
    assert run(tmp_path, cut, capsys=capsys)[0] == 0
    assert run(tmp_path, cut, "--fail-on", "warning", capsys=capsys)[0] == 1
    code, said = run(tmp_path, [volume("ccc", np.full(SHAPE, 7, np.uint8))], capsys=capsys)
    assert code == 1
    assert "1 volume: 1 error, 0 warnings, 0 notes" in said.out


def test_json_goes_to_stdout_and_the_files_hold_the_same(tmp_path, volume, capsys):
    entries = [volume("a", np.full(SHAPE, 7, np.uint8))]
    code, said = run(tmp_path, entries, "--json", "-o", str(tmp_path / "out"), capsys=capsys)
    assert code == 1
    printed = json.loads(said.out)
    assert printed["counts"] == {"error": 1, "warning": 0, "note": 0}
    assert json.loads((tmp_path / "out/audit.json").read_text()) == printed
    assert "looked at are 7" in (tmp_path / "out/audit.html").read_text()


def test_a_file_of_another_form_and_one_in_a_store_are_refused(tmp_path, volume, capsys):
    entries = [volume("a")]
    code, said = run(tmp_path, entries, "-o", str(tmp_path / "a.pdf"), capsys=capsys)
    assert (code, "name a .html" in said.err) == (2, True)
    inside = tmp_path / "data.zarr" / "a" / "audit.html"
    assert run(tmp_path, entries, "-o", str(inside), capsys=capsys)[0] == 2
    assert not inside.exists()


def test_the_page_escapes_what_names_hold_and_asks_for_nothing():
    finding = Finding("warning", "<b>", "a & <script>alert(1)</script>", "do <it>", {"n": "<i>"})
    text = page(Audit("t<ask>", 1, {"images": [finding], "shift": []}))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text
    assert "labels against the edges of the image" in text


def test_check_says_what_needs_no_look_at_voxels(tmp_path, volume, capsys):
    run(tmp_path, [volume("a", chunks=(24, 40, 32))], capsys=capsys)
    assert main(["check", str(tmp_path / "task.json")]) == 0
    assert "decode 60 voxels for each one" in capsys.readouterr().out


def test_every_check_has_its_own_name_and_file():
    files = {path.stem for path in Path(page.__code__.co_filename).parent.glob("*.py")}
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert {check.name for check in CHECKS} <= files
