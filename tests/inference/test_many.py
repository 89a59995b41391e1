"""Many volumes with one command: a pattern as input, or labelled volumes of the task."""

import shutil

import numpy as np
import pytest

from tests.inference.conftest import Identity, Workplace, make_task, save
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.errors import RefusedError, RunError, TaskError, VolumeError
from vcmodels.inference import RunOptions, predict_request, reproduce, run_inference
from vcmodels.inference.many import named_inputs, predict_each
from vcmodels.inference.preview import preview_path
from vcmodels.reporting import Silent
from vcmodels.results import our_attributes
from vcmodels.runs.run import Run
from vcmodels.volumes import create_array, open_volume, place_at

SHAPES = {"a": (10, 14, 18), "b": (9, 20, 12), "c": (16, 11, 13)}


def volume(place, name, shape, seed=0, dtype="uint8", fill=None):
    """Write random values, and return them."""
    values = np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)
    if fill is not None:
        values[:] = fill
    array = create_array(str(place), name, shape=shape, chunks=(8, 8, 8), dtype=dtype)
    array.write(open_volume(f"{place}/{name}", key="x").box, values[None])
    return values


class Many(Workplace):
    """A store of volumes, and a task that predicts all of them."""

    def __post_init__(self):
        self.store = str(self.folder / "input.zarr")
        self.raw = {
            name: volume(self.store, f"{name}/raw", shape, seed)
            for seed, (name, shape) in enumerate(SHAPES.items())
        }

    def predict(self, task, *, reporter=None, **options):
        network = self.trained(task)
        reporter = reporter or Silent()

        def one(named):
            return predict_request(
                named.request(task, (network,)), RunOptions(reporter=reporter, **options)
            )

        return predict_each(task, named_inputs(task), one, reporter)

    def many(self, **inference):
        return self.task(**{"input_path": f"{self.store}/*/raw", **inference})

    def result(self, name):
        place = self.folder / "out/net" / f"{name}.zarr/value/0"
        found = open_volume(str(place), key="out", channels="any")
        return found.read(found.box)[0]


@pytest.fixture
def many(tmp_path):
    return Many(tmp_path, np.zeros(1), (8, 8, 8), network=Identity())


def test_each_volume_of_a_pattern_gets_a_result_of_its_own(many):
    reporter = Silent()
    every = many.predict(many.many(), reporter=reporter)
    every.require_all()
    assert [*every.reports] == ["a", "b", "c"]
    for name, raw in many.raw.items():
        np.testing.assert_allclose(many.result(name), raw, atol=1e-3)
    assert [line for line in reporter.lines if line.startswith("volume ")] == [
        "volume 1 of 3: a", "volume 2 of 3: b", "volume 3 of 3: c",
    ]  # fmt: skip
    outputs = every.combined().outputs
    assert [*outputs] == ["a/value", "b/value", "c/value"]
    assert str(outputs["b/value"]) == str(many.folder / "out/net/b.zarr/value")


def test_what_is_complete_is_skipped_and_what_is_not_is_continued(many):
    task = many.many()
    many.predict(task)
    shutil.rmtree(many.folder / "out/net/b.zarr")
    reporter = Silent()
    every = many.predict(task, reporter=reporter)
    assert {name: one.was_complete for name, one in every.reports.items()} == {
        "a": True, "b": False, "c": True,
    }  # fmt: skip
    assert f"{many.folder}/out/net/a.zarr: already complete" in reporter.lines
    assert every.reports["b"].patches > 0


def test_a_volume_that_fails_does_not_stop_the_others(many):
    two = np.zeros((2, 8, 9, 10), np.uint8)
    create_array(f"{many.store}", "bb/raw", shape=two.shape, chunks=(2, 8, 8, 8), dtype="uint8")
    every = many.predict(many.many())
    assert [*every.reports] == ["a", "b", "c"]
    with pytest.raises(RunError, match=r"out/net: 1 of 4 volumes failed: bb .*2 channels"):
        every.require_all()
    np.testing.assert_allclose(many.result("c"), many.raw["c"], atol=1e-3)
    shutil.rmtree(f"{many.store}/bb")
    many.predict(many.many()).require_all()


def test_a_stop_after_a_failure_is_a_stop(many):
    every = many.predict(many.many(bbox=[[0, 99], [0, 5], [0, 5]]))
    assert every.failures
    every.is_through = False
    every.require_all()
    assert not every.combined().is_through


def test_boards_lie_in_a_folder_of_the_model(many, tmp_path):
    many.predict(many.many(tensorboard_log_dir=str(tmp_path / "boards")))
    (model,) = (tmp_path / "boards").iterdir()
    assert model.name == "net"
    assert sorted(path.name for path in model.iterdir()) == ["a", "b", "c"]


def test_what_every_volume_is_refused_for_is_said_once(many):
    every = many.predict(many.many(bbox=[[0, 99], [0, 5], [0, 5]]))
    with pytest.raises(TaskError, match="is not inside the volume") as caught:
        every.require_all()
    assert caught.value.exit_code == 2
    assert not (many.folder / "out").exists()


def test_a_stop_leaves_the_others(many):
    task = many.many()
    network, seen = many.trained(task), []

    def one(named):
        seen.append(named.name)
        return predict_request(named.request(task, (network,)))

    every = predict_each(task, named_inputs(task), one, Silent(), lambda: len(seen) == 2)
    assert (seen, every.is_through, every.combined().is_complete) == (["a", "b"], False, False)


def test_a_dry_run_sums_up_and_writes_nothing(many):
    tasks = [many.task(input_path=f"{many.store}/{name}/raw") for name in SHAPES]
    options = RunOptions(dry_run=True)
    each = [predict_request(many.request(task), options).estimate for task in tasks]
    total = many.predict(many.many(), dry_run=True).estimate
    assert total.patches == sum(one.patches for one in each)
    assert total.traffic.bytes_written == sum(one.traffic.bytes_written for one in each)
    written = zip(*(one.traffic.chunks_written for one in each), strict=True)
    assert total.traffic.chunks_written == tuple(map(sum, written))
    assert total.lines()[0].startswith(f"patches   {total.patches} ")
    assert not (many.folder / "out").exists()


def test_inputs_of_several_channels_expand_together(many):
    paths = [f"{many.store}/*/raw", f"{many.store}/*/dose"]
    for name in ("a", "b"):
        volume(many.store, f"{name}/dose", SHAPES[name])
    with pytest.raises(TaskError, match=r"input_path: '\*' = c matches the first input, but not"):
        named_inputs(many.many(input_path=paths))
    volume(many.store, "c/dose", SHAPES["c"])
    found = named_inputs(many.many(input_path=paths))
    assert [one.changes["input_path"] for one in found] == [
        [f"{many.store}/{name}/raw", f"{many.store}/{name}/dose"] for name in SHAPES
    ]
    with pytest.raises(TaskError, match=r"some paths hold a '\*' and some do not"):
        named_inputs(many.many(input_path=[paths[0], f"{many.store}/a/dose"]))
    with pytest.raises(VolumeError, match="nothing matches"):
        named_inputs(many.many(input_path=f"{many.store}/*/none"))


def test_a_mask_expands_with_its_input(many):
    for name, shape in SHAPES.items():
        volume(many.store, f"{name}/mask", shape, fill=int(name == "b"))
    mask = f"{many.store}/*/mask"
    many.predict(many.many(skip={"mask": mask})).require_all()
    assert not many.result("a").any()
    np.testing.assert_allclose(many.result("b"), many.raw["b"], atol=1e-3)
    shutil.rmtree(f"{many.store}/c/mask")
    with pytest.raises(TaskError, match=r"skip.mask: there is none for '\*' = c"):
        named_inputs(many.many(skip={"mask": mask}))
    with pytest.raises(TaskError, match=r"skip.mask: holds a '\*', and input_path none"):
        many.task(skip={"mask": mask})


def labelled(many, entries, choice, **inference):
    """A task that predicts its own volumes."""
    document = many.task().to_json()
    document["inference_params"] |= {"input_path": None, "volumes": choice, **inference}
    document["tr_params"]["ckpt_out_base"] = str(many.folder / "run")
    document["dataset_config"]["volume_paths"] = entries
    return parse_task(document, "test")[0]


def entry(many, case, **keys):
    raw = f"{many.store}/{case}/raw"
    return {"input": raw, "value": raw, "name": f"case-{case}", **keys}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("test", ["case-c"]),
        ("all", ["case-a", "case-b", "case-c"]),
        (["case-c", "case-a"], ["case-a", "case-c"]),
    ],
    ids=str,
)
def test_labelled_volumes_are_chosen(many, choice, names):
    entries = [entry(many, "a"), entry(many, "b", split="val"), entry(many, "c", split="test")]
    task = labelled(many, entries, choice)
    assert [one.name for one in named_inputs(task)] == names
    many.predict(task).require_all()
    found = {path.name for path in (many.folder / "out/net").glob("*.zarr")}
    assert found == {f"{name}.zarr" for name in names}


def test_what_was_held_out_is_chosen_as_the_run_says(many):
    entries = [entry(many, "a"), entry(many, "b", split="val"), entry(many, "c", split="test")]
    task = labelled(many, entries, "val")
    assert [one.name for one in named_inputs(task)] == ["case-b"]
    regions = [[[0, 4], [0, 14], [0, 18]], [[0, 9], [0, 20], [0, 12]]]
    (many.folder / "run").mkdir()
    Run(task.run_dir).write_splits(
        {"volumes": ["case-a", "case-b"], "train_regions": [None, None], "val_regions": regions}
    )
    assert [one.name for one in named_inputs(task)] == ["case-a", "case-b"]


def test_a_volume_is_read_as_its_entry_says(many):
    values = volume(many.store, "t/raw", (8, 9, 10))
    turned = entry(many, "t", axes={"input": "xyz", "value": "xyz"}, split="test")
    many.predict(labelled(many, [entry(many, "a"), turned], "test")).require_all()
    np.testing.assert_allclose(many.result("case-t"), values.transpose(2, 1, 0), atol=1e-3)


def test_parts_of_one_array_have_one_result(many):
    parts = [
        entry(many, "a", name=name, bbox=[[z, z + 5], [0, 14], [0, 18]])
        for name, z in (("low", 0), ("high", 5))
    ]
    parts[1]["split"] = "val"
    assert [one.name for one in named_inputs(labelled(many, parts, "all"))] == ["low"]
    assert [one.name for one in named_inputs(labelled(many, parts, "val"))] == ["low"]


def test_names_of_one_file_are_refused(many):
    other = f"{many.folder}/other.zarr"
    volume(other, "A/raw", (8, 8, 8))
    entries = [
        {"input": f"{store}/*/raw", "value": f"{store}/*/raw"} for store in (many.store, other)
    ]
    with pytest.raises(TaskError, match="is A, which differs from a only in case"):
        named_inputs(labelled(many, entries, "all"))
    slashed = {"input": f"{many.store}/a/raw", "value": f"{many.store}/a/raw"}
    [one] = named_inputs(labelled(many, [slashed], "all"))
    assert str(one.output) == str(many.folder / "out/net/a%2Fraw.zarr")


def test_a_choice_without_volumes_is_refused(many):
    entries = [entry(many, "a")]
    for choice, message in (
        ("test", r'inference_params.volumes: is "test", and there is no such volume'),
        ("val", r"splits.json: is not there; train first"),
        (["x"], r'"x" is no volume; they are case-a'),
    ):
        with pytest.raises(TaskError, match=message):
            named_inputs(labelled(many, entries, choice))
    document = labelled(many, entries, "val").to_json()
    document["tr_params"]["folds"] = {"count": 2}
    task = parse_task(document, "test")[0]
    with pytest.raises(TaskError, match=r"each fold holds out other volumes; give --fold"):
        named_inputs(task)


def test_the_command_line_takes_a_quoted_pattern_and_each_result_is_made_again(tmp_path, capsys):
    for name, shape in SHAPES.items():
        volume(tmp_path / "in.zarr", f"{name}/ct", shape, 1)
        volume(tmp_path / "in.zarr", f"{name}/dose", shape, 2, "uint16")
    paths = [f"{tmp_path}/in.zarr/*/{name}" for name in ("ct", "dose")]
    task = make_task(tmp_path, output_chunks=[16, 16, 16], amp="off")
    checkpoint = str(save(tmp_path, task))
    words = ["infer", checkpoint, *paths, "-o", str(tmp_path / "many")]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "many").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "volume 3 of 3: c" in said
    assert f"a/sheet: {tmp_path}/many/net/a.zarr/sheet" in said
    alone = [f"{tmp_path}/in.zarr/b/{name}" for name in ("ct", "dose")]
    assert main(["infer", checkpoint, *alone, "-o", str(tmp_path / "one.zarr")]) == 0
    for target in ("sheet", "organ", "normals"):
        values = [
            open_volume(f"{tmp_path}/{root}/{target}/0", key="x", channels="any")
            for root in ("many/net/b.zarr", "one.zarr")
        ]
        np.testing.assert_array_equal(*(one.read(one.box) for one in values))
    params = our_attributes(place_at(f"{tmp_path}/many/net/b.zarr"))["provenance"]["task"][
        "inference_params"
    ]
    assert (params["input_path"], params["volumes"]) == (alone, None)
    found = reproduce(f"{tmp_path}/many/net/b.zarr", tmp_path / "again", reporter=Silent())
    assert (found.is_whole, found.lines) == (True, [])
    assert main([*words[:-1], str(tmp_path / "x.zarr")]) == 2
    assert "is one result, and there are those of many volumes" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "in.zarr/c/dose/c", ignore_errors=True)
    (tmp_path / "in.zarr/c/ct/zarr.json").write_text("{}")
    shutil.rmtree(tmp_path / "many/net/b.zarr")
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "1 of 3 volumes failed: c (the first: " in captured.err
    assert "volume 2 of 3: b" in captured.out
    assert (tmp_path / "many/net/b.zarr").exists()


def test_a_checkpoint_predicts_volumes_of_its_training_without_a_task_file(tmp_path, capsys):
    entries = []
    for name, shape in SHAPES.items():
        ct, dose = (f"{tmp_path}/in.zarr/{name}/{part}" for part in ("ct", "dose"))
        volume(tmp_path / "in.zarr", f"{name}/ct", shape, 1)
        volume(tmp_path / "in.zarr", f"{name}/dose", shape, 2, "uint16")
        entries.append({"input": [ct, dose], "sheet": ct, "name": name})
    document = make_task(tmp_path, amp="off", output_targets=["sheet"]).to_json()
    data = document["dataset_config"]
    data["volume_paths"], data["targets"] = entries, {"sheet": data["targets"]["sheet"]}
    checkpoint = str(save(tmp_path, parse_task(document, "test")[0]))
    words = ["infer", checkpoint, "-o", str(tmp_path / "again"), "--set"]
    assert main([*words, 'inference_params.volumes=["a", "c"]']) == 0
    assert "volume 2 of 2: c" in capsys.readouterr().out
    found = open_volume(f"{tmp_path}/again/net/c.zarr/sheet/0", key="x", channels="any")
    assert found.extent == SHAPES["c"]
    assert main([*words, "inference_params.volumes=null"]) == 2
    assert "--input: is missing" in capsys.readouterr().err
    assert main([*words, "inference_params.volumes=test", "--input", "a.zarr"]) == 2
    told = capsys.readouterr().err
    assert "inference_params.volumes: is set, and a.zarr is named; leave one out" in told


def test_each_volume_has_a_picture_of_its_own(tmp_path):
    for name, shape in SHAPES.items():
        volume(tmp_path / "in.zarr", f"{name}/ct", shape, 1)
        volume(tmp_path / "in.zarr", f"{name}/dose", shape, 2, "uint16")
    paths = [f"{tmp_path}/in.zarr/*/{name}" for name in ("ct", "dose")]
    task = make_task(tmp_path, output_chunks=[16, 16, 16], amp="off", input_path=paths)
    checkpoint = str(save(tmp_path, task))
    with pytest.raises(RefusedError, match=r"--preview: .*one.png is one picture of many volumes"):
        run_inference(task, checkpoint, RunOptions(preview=tmp_path / "one.png"))
    run_inference(task, checkpoint, RunOptions(preview=tmp_path / "pictures"))
    found = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert found == {f"{name}.png" for name in SHAPES}
    assert preview_path(tmp_path, "scan/a") == tmp_path / "scan%2Fa.png"
