import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vcmodels.errors import OutputError, RunError, TaskError, VolumeError
from vcmodels.inference import predict_request, request_of
from vcmodels.inference.journal import Journal
from vcmodels.inference.locks import working_on
from vcmodels.inference.output import refuse_inside_input
from vcmodels.inference.request import choose_targets
from vcmodels.reporting import Silent
from vcmodels.targets import BoundaryTarget, CentresTarget, DistanceTarget, NormalsTarget
from vcmodels.volumes import LocalPlace, WritableArray, create_array, open_volume


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def root_of(work):
    return work.folder / "out" / "net.zarr"


def times(work):
    return {p: p.stat().st_mtime_ns for p in root_of(work).rglob("*") if p.is_file()}


def test_a_finished_run_is_not_touched_again(workplace):
    work = workplace(noise((9, 10, 11)))
    first = work.run()
    before = times(work)
    reporter = Silent()
    again = work.run(options={"reporter": reporter})
    assert (first.was_complete, again.was_complete, again.patches) == (False, True, 0)
    assert "already complete" in reporter.lines[-1]
    assert times(work) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"overlap": 0.5}, r"overlap was \[0.25, 0.25, 0.25\], is \[0.5, 0.5, 0.5\]"),
        ({"output_type": "float16"}, 'output_type was "float32", is "float16"'),
        ({"bbox": [[0, 9], [0, 10], [0, 4]]}, "bbox was null"),
        ({"patch_size": [6, 8, 8]}, "patch_size was"),
    ],
)
def test_another_run_is_refused_and_names_what_differs(workplace, change, named):
    work = workplace(noise((9, 10, 11)))
    work.run()
    before = times(work)
    with pytest.raises(OutputError, match=named) as caught:
        work.run(**change)
    assert "--overwrite" in caught.value.remedy
    assert times(work) == before
    report = work.run(**change, options={"overwrite": True})
    assert report.patches > 0
    assert work.run(**change).was_complete


def test_an_input_that_changed_is_another_run(workplace):
    work = workplace(noise((9, 10, 11)))
    work.run()
    raw = next(p for p in Path(work.store, "raw").rglob("0") if p.is_file())
    os.utime(raw, ns=(1, 1))
    with pytest.raises(
        OutputError, match=r"input_content was .*; restore its chunks with.*\(cp -p\)"
    ):
        work.run()


def test_what_is_not_ours_is_never_deleted(workplace):
    work = workplace(noise((9, 10, 11)))
    root = root_of(work)
    create_array(str(root), "value/0", shape=(2, 2, 2), chunks=(2, 2, 2), dtype="u1")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(OutputError, match="not written by vcmodels"):
            work.run(options=options)
    assert open_volume(str(root / "value/0"), key="x").extent == (2, 2, 2)


def test_overwriting_leaves_foreign_arrays_in_the_group(workplace):
    work = workplace(noise((9, 10, 11)))
    work.run()
    create_array(str(root_of(work)), "mine", shape=(2, 2, 2), chunks=(2, 2, 2), dtype="u1")
    work.run(overlap=0.5, options={"overwrite": True})
    assert (root_of(work) / "mine" / ".zarray").exists()
    np.testing.assert_allclose(work.read(), work.values, atol=1e-6)


def test_two_processes_cannot_write_one_output(workplace):
    work = workplace(noise((9, 10, 11)))
    root_of(work).parent.mkdir(parents=True)
    with (
        working_on(LocalPlace(root_of(work)), alone=True, reporter=Silent()),
        pytest.raises(OutputError, match=f"in use by pid {os.getpid()}"),
    ):
        work.run()
    work.run()
    assert not list(root_of(work).parent.glob(".*.lock"))


def test_the_output_may_not_share_a_store_with_the_input(workplace):
    work = workplace(noise((9, 10, 11)))
    link = work.folder / "link"
    link.symlink_to(work.store)
    raw = f"{work.store}/raw"
    for root in (work.store, f"{raw}/net.zarr", link / "net.zarr", work.folder / "input.zarr/new"):
        with pytest.raises(OutputError, match="share a store"):
            refuse_inside_input(Path(root), [raw])
    with pytest.raises(OutputError, match="share a store"):
        refuse_inside_input(work.folder, [raw])
    refuse_inside_input(work.folder / "net.zarr", [raw, "s3://bucket/raw"])


def test_a_file_in_the_way_is_refused(workplace):
    work = workplace(noise((9, 10, 11)))
    root_of(work).parent.mkdir(parents=True)
    root_of(work).write_text("mine")
    with pytest.raises(OutputError, match="in the way"):
        work.run(options={"overwrite": True})
    assert root_of(work).read_text() == "mine"


def test_the_attributes_say_how_it_was_made(workplace):
    work = workplace(noise((9, 10, 11)))
    work.run(bbox=[[0, 9], [2, 10], [0, 11]])
    attributes = json.loads((root_of(work) / "value" / ".zattrs").read_text())
    ours = attributes["vcmodels"]
    assert ours["complete"] is True
    assert (ours["target"], ours["kind"]) == ("value", "regression")
    assert ours["encoding"]["scale"] == 1.0
    assert "provenance" not in ours  # long, and in one place
    noted = json.loads((root_of(work) / ".zattrs").read_text())["vcmodels"]
    assert noted["manifest"]["checkpoint_sha256"] == "0" * 64
    assert noted["manifest"]["bbox"] == [[0, 9], [2, 10], [0, 11]]
    made = noted["provenance"]
    assert made["task"]["inference_params"]["overlap"] == 0.25
    assert set(made["versions"]) == {"python", "vcmodels", "torch", "zarr", "numpy"}
    assert [axis["name"] for axis in attributes["multiscales"][0]["axes"]] == ["z", "y", "x"]
    assert "temperatures" not in made
    assert not (root_of(work) / ".vcmodels").exists()


def test_the_attributes_say_with_which_temperatures(workplace):
    work = workplace(noise((9, 10, 11)))
    predict_request(work.request(work.task(), temperatures={"value": 1.5}))
    noted = json.loads((root_of(work) / ".zattrs").read_text())["vcmodels"]
    assert noted["provenance"]["temperatures"] == {"value": 1.5}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"input_path": None}, TaskError, "input_path: is not set"),
        ({"output_dir": None}, TaskError, "output_dir: is not set"),
        ({"output_dir": "https://b/x"}, TaskError, "https://b/x cannot be written to"),
        ({"input_path": "nowhere.zarr"}, VolumeError, "does not exist"),
        ({"bbox": [[0, 9], [0, 11], [0, 11]]}, TaskError, "is not inside the volume"),
        ({"memory": 1e-6}, TaskError, "memory: 1e-06 GB are too little"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(workplace, settings, error, message):
    work = workplace(noise((9, 10, 11)))
    with pytest.raises(error, match=message):
        work.run(**settings)
    assert not (work.folder / "out").exists()


def test_a_task_that_contradicts_the_checkpoint_is_refused(workplace):
    work = workplace(noise((9, 10, 11)))
    task = work.task()
    networks = (work.trained(task),)
    other = task.model_copy(
        update={
            "dataset_config": task.dataset_config.model_copy(
                update={
                    "normalization": task.dataset_config.normalization.model_copy(
                        update={"scheme": "zscore"}
                    )
                }
            )
        }
    )
    with pytest.raises(TaskError, match=r"dataset_config\.normalization"):
        request_of(other, networks)


def test_a_target_that_the_checkpoint_lacks_or_learnt_otherwise_is_refused(workplace):
    work = workplace(noise((9, 10, 11)))
    task = work.task(output_targets=["value"])
    value = task.dataset_config.targets["value"]
    with pytest.raises(TaskError, match='"value" is not in the checkpoint; choose from depth'):
        predict_request(work.request(task, targets={"depth": value}))
    changed = value.model_copy(update={"channels": 2})
    with pytest.raises(TaskError, match=r"targets\.value\.channels: is 1, .* trained with 2"):
        predict_request(work.request(task, targets={"value": changed}))


AXIS, IDS = {"orientation": "axial"}, {"derive": "cells"}


@pytest.mark.parametrize(
    ("trained", "now", "refused"),
    [
        (CentresTarget(**IDS, max_extent=5, sigma=3, keep_cut=True), CentresTarget(), None),
        (CentresTarget(**IDS, max_extent=5, sigma_units="physical"), CentresTarget(), None),
        (BoundaryTarget(**IDS, width=2, between="instances"), BoundaryTarget(), None),
        (NormalsTarget(**IDS, **AXIS, surface_of="instances"), NormalsTarget(**AXIS), None),
        (NormalsTarget(**IDS, smoothing_sigma=2), NormalsTarget(), None),
        (NormalsTarget(), NormalsTarget(label_interpolation="nearest"), None),
        (DistanceTarget(**IDS, clip=4), DistanceTarget(clip=5), "clip"),
        (DistanceTarget(clip=4), DistanceTarget(clip=4, positive="inside"), "positive"),
        (NormalsTarget(), NormalsTarget(**AXIS), "orientation"),
    ],
)
def test_how_a_label_came_about_may_differ_but_not_what_it_means(workplace, trained, now, refused):
    work = workplace(noise((9, 10, 11)))
    task = work.task()
    network = work.trained(task, targets={"value": trained})
    given = {"value": now}, network, task.inference_params
    if refused is None:
        assert choose_targets(*given) == {"value": now}
    else:
        with pytest.raises(TaskError, match=rf"targets\.value\.{refused}: is .* trained with"):
            choose_targets(*given)


def test_a_full_disk_keeps_what_is_finished_and_the_run_continues(workplace, monkeypatch):
    work = workplace(noise((30, 10, 11)))
    write, calls = WritableArray.write, []

    def full(self, box, data):
        calls.append(box)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        write(self, box, data)

    monkeypatch.setattr(WritableArray, "write", full)
    with pytest.raises(RunError, match=r"No space left on device\); make space"):
        work.run()
    assert len(Journal(LocalPlace(root_of(work))).done()) == 2
    monkeypatch.setattr(WritableArray, "write", write)
    reporter = Silent()
    report = work.run(options={"reporter": reporter})
    assert "continuing after 2 finished layers" in reporter.lines[0]
    assert report.patches < 7 * 2 * 2
    np.testing.assert_allclose(work.read(), work.values, atol=1e-6)


def test_a_kill_while_overwriting_leaves_no_slab_marked_as_done(workplace, monkeypatch):
    work = workplace(noise((24, 10, 11)))
    asked = []
    work.run(options={"should_stop": lambda: asked.append(1) or len(asked) > 12})
    assert Journal(LocalPlace(root_of(work))).done()

    def rmtree(place):
        shutil.rmtree(place)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("vcmodels.volumes.places.shutil", SimpleNamespace(rmtree=rmtree))
        with pytest.raises(KeyboardInterrupt):
            work.run(options={"overwrite": True})
    work.run()
    np.testing.assert_allclose(work.read(), work.values, atol=1e-6)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_finished_result_that_lost_a_chunk_is_not_called_complete(workplace, zarr_format):
    work = workplace(noise((9, 10, 11)))
    options = {"output_zarr_format": zarr_format}
    work.run(**options)
    before = work.read()
    names = (".zarray", ".zattrs", ".zgroup", "zarr.json")
    chunks = [p for p in (root_of(work) / "value" / "0").rglob("*") if p.is_file()]
    next(p for p in chunks if p.name not in names).unlink()
    with pytest.raises(OutputError, match=r"7 chunks are stored, which were 8; .*--verify"):
        work.run(**options)
    report = work.run(**options, options={"verify": True})
    assert 0 < report.patches < 18
    np.testing.assert_array_equal(work.read(), before)
    assert work.run(**options).was_complete


def test_verifying_mends_what_is_damaged_and_nothing_else(workplace):
    work = workplace(noise((40, 10, 11)))
    work.run()
    before = work.hashes()
    damaged = root_of(work) / "value" / "0" / "4" / "0" / "1"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    old, reporter = times(work), Silent()
    report = work.run(options={"verify": True, "reporter": reporter})
    told = [line for line in reporter.lines if line.startswith("damaged: ")]
    assert told == [line for line in told if f"chunk (4, 0, 1): {damaged} cannot be read" in line]
    assert len(told) == 1
    assert 0 < report.patches < 20
    assert work.hashes() == before
    changed = {path.name for path, stamp in times(work).items() if old[path] != stamp}
    assert changed <= {"1", ".zattrs", "METADATA.ome.xml"}


def test_shards_hold_the_same_voxels_and_are_written_once(workplace, monkeypatch):
    plain = workplace(noise((20, 37, 41)))
    plain.run(overlap=0.3)
    work = workplace(noise((20, 37, 41)))
    written = []
    write = WritableArray.write
    monkeypatch.setattr(
        WritableArray,
        "write",
        lambda self, box, data: (written.append(box), write(self, box, data))[1],
    )
    work.run(overlap=0.3, memory=1e-3, output_zarr_format=3, output_shards=[16, 16, 24])
    np.testing.assert_array_equal(work.read(), plain.read())
    starts = [tuple(o % s for o, s in zip(b.origin, (16, 16, 24), strict=True)) for b in written]
    assert set(starts) == {(0, 0, 0)}
    assert sum(box.voxels for box in written) == work.values.size
    files = [name for name in work.hashes() if "/c/" in name]
    assert len(files) == 2 * 3 * 2
    volume = open_volume(str(root_of(work) / "value" / "0"), key="x")
    assert (volume.chunks, volume.shards) == ((8, 8, 8), (16, 16, 24))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_shards": [16, 16, 16]}, "output_shards: needs version 3"),
        ({"output_shards": [16, 12, 16], "output_zarr_format": 3}, "is not a multiple of"),
    ],
)
def test_shards_that_cannot_be_are_refused(workplace, settings, message):
    with pytest.raises(TaskError, match=message):
        workplace(noise((9, 10, 11))).run(**settings)
