import itertools
import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cc3d
import numpy as np
import pytest
import zarr

from tests.inference.conftest import Identity, Workplace
from tests.postprocess.test_components import in_order_of_first_voxels
from vcmodels.blockwise import Crew, Part
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.config.load import parse_steps
from vcmodels.errors import OutputError, TaskError
from vcmodels.inference import RunOptions, claim, predict_request
from vcmodels.reporting import Silent
from vcmodels.results import KEY, discard_output, our_attributes
from vcmodels.viewers.contents import scene_of_result
from vcmodels.viewers.drawn import subject_of_result
from vcmodels.volumes import create_array, open_volume, place_at, read_members, set_group_attributes
from vcmodels.volumes.locks import FileLock
from vcmodels.workflows import step_work
from vcmodels.workflows.ground import ground_of_array, ground_of_request, ground_of_result
from vcmodels.workflows.postprocess import finish_request, postprocess, require_steps
from vcmodels.workflows.step_work import FOLDER

SHAPE = (21, 34, 29)
STEPS = [{"name": "components", "output": "blobs", "from": "value", "connectivity": 6}]


class Place(Workplace):
    """Predictions that are the sigmoid of the input, and steps on them."""

    def task(self, **inference):
        record = super().task(**inference).to_json()
        record["dataset_config"]["targets"] = {"value": {"kind": "binary"}}
        record["postprocess"] = STEPS
        return parse_task(record, "test", is_record=True)[0]

    @property
    def root(self):
        return place_at(str(self.folder / "out" / "net.zarr"))

    def stored(self, name="blobs/0"):
        return zarr.open_array(f"{self.root}/{name}", mode="r")[:]


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=SHAPE).astype(np.float32)
    one = Place(tmp_path, values, (8, 8, 8), Identity())
    request = one.request(one.task())
    assert predict_request(request).is_complete
    one.finish = lambda **keys: finish_request(request, Crew(), **keys)
    return one


def test_a_result_gets_the_objects_of_the_whole_volume(place):
    report = place.finish()
    assert (report.made, report.kept, report.is_complete) == (("blobs",), (), True)
    expected = cc3d.connected_components(place.values >= 0, connectivity=6)
    np.testing.assert_array_equal(place.stored(), in_order_of_first_voxels(expected))
    assert place.stored().dtype == np.uint64
    notes = our_attributes(place.root / "blobs")
    assert notes["complete"] is True
    assert notes["step"]["connectivity"] == 6
    assert set(read_members(str(place.root))) == {"value", "blobs"}
    assert FOLDER not in place.root.names()


def test_what_is_there_is_kept_and_what_was_made_otherwise_is_refused(place):
    place.finish()
    assert place.finish().kept == ("blobs",)
    steps = place.task().postprocess
    other = (steps[0].changed(threshold=0.75),)
    ground = ground_of_result(place.root)
    with pytest.raises(
        OutputError, match=r"threshold was None, is 0.75; vcmodels postprocess with --overwrite"
    ):
        postprocess(ground, other)
    assert postprocess(ground, other, overwrite=True).made == ("blobs",)
    expected = cc3d.connected_components(place.values >= np.log(3), connectivity=6)
    np.testing.assert_array_equal(place.stored(), in_order_of_first_voxels(expected))


def test_infer_takes_a_result_for_complete_that_steps_were_done_on(place):
    place.finish()
    assert predict_request(place.request(place.task())).was_complete
    predict_request(place.request(place.task()), RunOptions(overwrite=True))
    assert "blobs" not in place.root.names()


def test_what_decides_on_the_output_is_noted_with_it(place):
    place.finish()
    ground = ground_of_result(place.root)
    steps = place.task().postprocess
    other = replace(ground, grid=replace(ground.grid, spacing=(2.0, 1.0, 1.0)))
    with pytest.raises(OutputError, match="was made of something else"):
        postprocess(other, steps)
    kind = replace(ground.sources["value"], kind="boundary")
    with pytest.raises(OutputError, match="mask has changed"):
        postprocess(replace(ground, sources={"value": kind}), steps)


def test_what_another_step_has_left_is_not_taken_for_its_own(place):
    ground, steps = ground_of_result(place.root), place.task().postprocess
    asked = itertools.count()
    crew = Crew(should_stop=lambda: next(asked) >= 4)  # while it writes
    postprocess(ground, steps, crew)
    (place.root / "blobs").remove()
    other = (steps[0].changed(min_size=30),)
    postprocess(ground, other)
    found = place.stored()
    (place.root / "blobs").remove()
    postprocess(ground, other)
    np.testing.assert_array_equal(found, place.stored())


def test_results_may_share_a_scratch_folder(place, tmp_path):
    steps, scratch = place.task().postprocess, tmp_path / "scratch"
    asked = itertools.count()
    crew = Crew(should_stop=lambda: next(asked) >= 4)
    postprocess(ground_of_result(place.root), steps, crew, scratch=scratch)
    values = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    second = Place(tmp_path / "second", values, (8, 8, 8), Identity())
    request = second.request(second.task())
    predict_request(request)
    postprocess(ground_of_result(second.root), steps, scratch=scratch)
    expected = cc3d.connected_components(values >= 0, connectivity=6)
    np.testing.assert_array_equal(second.stored(), in_order_of_first_voxels(expected))


def test_another_process_is_not_overwritten(place):
    place.finish()
    ground = ground_of_result(place.root)
    other = (place.task().postprocess[0].changed(threshold=0.75),)
    folder = place.folder / "out/net.zarr" / FOLDER / "blobs"
    folder.mkdir(parents=True)
    lock = FileLock(folder / "present.lock", shared=True)
    with pytest.raises(OutputError, match="another process works on it; wait for it"):
        postprocess(ground, other, overwrite=True)
    lock.close()
    assert postprocess(ground, other, overwrite=True).made == ("blobs",)


@pytest.mark.parametrize("codes", [[0, 1], [0, 255], [0, 100, 160, 255]], ids=str)
def test_whole_numbers_are_masks_or_codes_of_probabilities(tmp_path, codes):
    stored = np.random.default_rng(0).choice(np.array(codes, np.uint8), SHAPE)
    array = create_array(str(tmp_path), "m", shape=SHAPE, chunks=(8, 8, 8), dtype="uint8")
    volume = open_volume(array.location, key="m")
    array.write(volume.box, stored[None])
    ground = ground_of_array(volume, "source", "binary", place_at(str(tmp_path / "out.zarr")))
    step = STEPS[0] | {"from": "source", "threshold": 0.6}
    postprocess(ground, parse_steps([step]))
    found = zarr.open_array(f"{tmp_path}/out.zarr/blobs/0", mode="r")[:]
    mask = stored > 0 if len(codes) == 2 else stored >= 0.6 * 255
    np.testing.assert_array_equal(found > 0, mask)


def test_a_stop_anywhere_continues_to_the_same_bytes(place):
    place.finish()
    reference = place.hashes()
    ground = replace(ground_of_result(place.root), chunks=(16, 16, 16))
    steps = place.task().postprocess
    for most in (1, 2, 5, 9):
        asked = itertools.count()
        crew = Crew(should_stop=lambda asked=asked, most=most: next(asked) >= most)
        postprocess(ground, steps, crew, overwrite=True)
    report = postprocess(ground_of_result(place.root), steps, overwrite=True)
    assert report.is_complete
    assert place.hashes() == reference


def work_on(root, steps, part):
    postprocess(ground_of_result(place_at(root)), steps, Crew(part=part))


def test_processes_share_the_work_and_give_the_same_bytes(place):
    place.finish()
    reference = place.hashes()
    (place.root / "blobs").remove()
    context = multiprocessing.get_context("spawn")
    steps = place.task().postprocess
    workers = [
        context.Process(target=work_on, args=(str(place.root), steps, Part(i, 2))) for i in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert place.hashes() == reference
    assert FOLDER not in place.root.names()


def test_an_output_that_another_process_is_just_making_is_no_image_yet(place):
    other = place.root / "later"
    set_group_attributes(str(other), {KEY: {"step": {}, "complete": False}})
    (other / "0").path.mkdir()
    assert place.finish().made == ("blobs",)
    assert set(read_members(str(place.root))) == {"value", "blobs"}


class KilledError(Exception):
    """What stands for a kill."""


def killed_after(monkeypatch, count):
    """Deleting files ends after so many, as in a process that is killed."""
    real, left = os.unlink, itertools.count(count, -1)

    def unlink(*given, **keys):
        if next(left) <= 0:
            raise KilledError
        real(*given, **keys)

    monkeypatch.setattr(os, "unlink", unlink)


def test_what_a_kill_leaves_of_an_output_that_goes_is_known_and_goes(place, monkeypatch):
    place.finish()
    reference = place.hashes()
    steps, ground = place.task().postprocess, ground_of_result(place.root)
    other = (steps[0].changed(threshold=0.75),)
    files = sum(path.is_file() for path in (place.root / "blobs").path.rglob("*"))
    for count in (1, files // 2, files - 1):
        with monkeypatch.context() as patch:
            killed_after(patch, count)
            with pytest.raises(KilledError):
                postprocess(ground, other, overwrite=True)
        list(scene_of_result(str(place.root), (), Silent()).layers)
        require_steps(steps, ground)
        assert postprocess(ground, steps).made == ("blobs",)
        assert place.hashes() == reference


def test_what_a_kill_leaves_while_a_result_is_predicted_again_is_no_obstacle(place, monkeypatch):
    place.finish()
    reference, request = place.hashes(), place.request(place.task())

    def discard(output):
        with monkeypatch.context() as patch:
            killed_after(patch, 5)
            discard_output(output)

    with monkeypatch.context() as patch:
        patch.setattr(claim, "discard_output", discard)
        with pytest.raises(KilledError):
            predict_request(request, RunOptions(overwrite=True))
    assert "blobs" in place.root.names()
    predict_request(request, RunOptions(overwrite=True))
    place.finish()
    assert place.hashes() == reference


def test_a_folder_that_another_process_deletes_as_one_begins_is_made_again(place, monkeypatch):
    scratch, asked = place.folder / "out/net.zarr" / FOLDER, itertools.count()

    def lock(path, **keys):
        if next(asked) == 0:
            shutil.rmtree(scratch)
        return FileLock(path, **keys)

    monkeypatch.setattr(step_work, "FileLock", lock)
    assert place.finish().made == ("blobs",)
    assert FOLDER not in place.root.names()


def test_a_folder_that_is_being_deleted_cannot_be_entered(place, monkeypatch):
    """Another process begins just when this one, which is the last, deletes what it needed."""
    real, entered = shutil.rmtree, []

    def rmtree(path, **keys):
        if not entered and Path(path).parent.name == FOLDER:
            entered.append(path)
            assert place.finish().kept == ("blobs",)
        real(path, **keys)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert place.finish().made == ("blobs",)
    assert entered
    assert FOLDER not in place.root.names()


def test_what_a_kill_leaves_of_the_folder_of_a_step_goes_with_the_next_run(place, monkeypatch):
    scratch = place.folder / "out/net.zarr" / FOLDER
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        place.finish()
    assert len(list(scratch.iterdir())) == 1
    assert place.finish().kept == ("blobs",)
    assert FOLDER not in place.root.names()


def test_an_array_that_no_step_has_written_is_in_the_way(place):
    create_array(str(place.root), "blobs/0", shape=SHAPE, chunks=(8, 8, 8), dtype="uint8")
    with pytest.raises(OutputError, match="no output of post-processing; give the step another"):
        place.finish()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from": "valu"}, 'postprocess.0.from: "valu" is no target .* did you mean "value"'),
        ({"output": "value"}, 'postprocess.0.output: "value" is also a target'),
        ({"min_size": 0}, r"postprocess.0.min_size: found 0; give an integer at least 1"),
        ({"name": "component"}, 'postprocess.0.name: found "component"; did you mean "components"'),
        ({"conectivity": 6}, 'postprocess.0.conectivity: unknown key; did you mean "connectivity"'),
    ],
)
def test_faults_of_steps_are_found_when_the_task_is_read(place, changes, message):
    record = place.task().to_json()
    record["postprocess"] = [STEPS[0] | changes]
    with pytest.raises(TaskError, match=message):
        parse_task(record, "test", is_record=True)


def test_steps_are_checked_before_anything_is_predicted(place):
    request = place.request(place.task())
    require_steps(request.steps, ground_of_request(request))
    wrong = (request.steps[0].changed(source="other"),)
    with pytest.raises(TaskError, match=r'postprocess.0.from: there is no "other"'):
        require_steps(wrong, ground_of_request(request))


def test_the_command_works_on_a_result_and_on_any_array(place, tmp_path, capsys):
    file = tmp_path / "steps.json"
    file.write_text(json.dumps([STEPS[0] | {"from": "value", "output": "again"}]))
    assert main(["postprocess", str(place.root), "--steps", str(file)]) == 0
    assert main(["postprocess", str(place.root)]) == 0
    np.testing.assert_array_equal(place.stored("again/0"), place.stored())
    file.write_text(json.dumps([STEPS[0] | {"from": "source"}]))
    array = f"{place.root}/value/0"
    assert main(["postprocess", array, "--steps", str(file)]) == 2
    assert "--output: is missing" in capsys.readouterr().err
    out = str(tmp_path / "plain.zarr")
    assert main(["postprocess", array, "--steps", str(file), "-o", out]) == 2
    assert "--kind: is needed" in capsys.readouterr().err
    assert main(["postprocess", array, "--steps", str(file), "-o", out, "--kind", "binary"]) == 0
    np.testing.assert_array_equal(zarr.open_array(f"{out}/blobs/0", mode="r")[:], place.stored())


def test_objects_are_shown_as_ids_beside_the_predictions(place, tmp_path):
    place.finish()
    scene = scene_of_result(str(place.root), (), Silent())
    looks = {layer.name: type(layer.look).__name__ for layer in scene.layers}
    assert looks["blobs (objects)"] == "Ids"
    subject = subject_of_result(str(place.root), None, {}, (), Silent())
    assert {layer.name for layer in subject.layers} == {"value", "blobs"}
    assert main(["overlay", str(place.root), "-o", str(tmp_path / "overlay.png")]) == 0
