"""The evaluation of a task with many volumes: what is chosen, which result it has, and the report."""

import csv
import hashlib
import json

import numpy as np
import pytest

from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.errors import OutputError, RefusedError, TaskError, VolumeError
from vcmodels.evaluation import evaluate
from vcmodels.evaluation.report import Report
from vcmodels.reporting import Silent
from vcmodels.runs.run import TRAILER, Run
from vcmodels.targets.binary import BinaryTarget
from vcmodels.volumes import Description, Grid, set_group_attributes, write_multiscale_group
from vcmodels.volumes.places import write_json

EXTENT = (6, 9, 13)
SPLITS = {"a": "train", "b": "val", "c": "test", "d": "test"}


class Cases:
    """Volumes of all splits, each with a label and a prediction."""

    def __init__(self, folder, store):
        self.folder, self.store = folder, store
        rng = np.random.default_rng(0)
        self.masks = {name: rng.integers(0, 2, EXTENT, dtype=np.uint8) for name in SPLITS}
        self.codes = {name: rng.integers(0, 256, EXTENT, dtype=np.uint8) for name in SPLITS}
        for name in SPLITS:
            store(f"{name}/raw", rng.integers(0, 256, EXTENT, dtype=np.uint8))
            store(f"{name}/sheet", self.masks[name])
            self.predict(name)
        self.document = {
            "tr_params": {
                "model_name": "net", "patch_size": [16, 16, 16],
                "ckpt_out_base": str(folder / "run"),
            },
            "model_config": {"f_maps": [2, 4]},
            "inference_params": {"output_dir": str(folder / "out")},
            "dataset_config": {
                "volume_paths": [self.entry(name, split) for name, split in SPLITS.items()],
                "targets": {"sheet": {"kind": "binary"}},
            },
            "evaluation": {"metrics": {"sheet": ["dice", "iou"]}},
        }  # fmt: skip

    def entry(self, case, split=None, **keys):
        place = f"{self.folder}/data.zarr/{case}"
        found = {"name": case, "input": f"{place}/raw", "sheet": f"{place}/sheet", "split": split}
        return found | keys

    def predict(self, name, root=None, *, complete=True):
        root = f"out/net/{name}.zarr" if root is None else root
        self.store("sheet/0", self.codes[name], root=root)
        notes = {"encoding": BinaryTarget().encoding(np.dtype("uint8")), "complete": complete}
        write_multiscale_group(
            str(self.folder / root / "sheet"), Grid(), Description("sheet", {"vcmodels": notes})
        )

    def task(self, **evaluation):
        document = json.loads(json.dumps(self.document))
        document["evaluation"] |= evaluation
        return parse_task(document, "test")[0]

    def dice(self, *names, at=np.s_[:]):
        pairs = [(self.codes[n][at] > 127.5, self.masks[n][at] > 0) for n in names]
        both = sum((p & t).sum() for p, t in pairs)
        return pytest.approx(2 * both / sum(p.sum() + t.sum() for p, t in pairs), abs=1e-12)


@pytest.fixture
def cases(tmp_path, store):
    return Cases(tmp_path, store)


@pytest.mark.parametrize(
    ("choice", "names"),
    [(None, "b"), ("val", "b"), ("test", "cd"), ("all", "abcd"), (["d", "a"], "ad")],
    ids=str,
)
def test_the_chosen_volumes_are_scored_alone_and_together(cases, choice, names):
    scores = evaluate(cases.task(volumes=choice))
    assert [volume.name for volume in scores.report.volumes] == [*names]
    for volume in scores.report.volumes:
        assert volume.targets["sheet"].figures["dice"] == cases.dice(volume.name)
        assert volume.split == SPLITS[volume.name]
    assert scores["sheet"]["dice"] == cases.dice(*names)
    assert [*scores["sheet"]] == ["dice", "iou"]


def test_without_a_choice_what_was_predicted_is_scored(cases):
    cases.document["inference_params"]["volumes"] = "test"
    assert [v.name for v in evaluate(cases.task()).report.volumes] == ["c", "d"]
    given = evaluate(cases.task(volumes="val"), volumes=["a"])
    assert [v.name for v in given.report.volumes] == ["a"]


def test_a_note_says_where_was_trained(cases):
    reporter = Silent()
    evaluate(cases.task(volumes="all"), reporter=reporter)
    assert "note: voxels that were trained on are among those of a" in reporter.lines
    assert "scoring sheet on 4 volumes" in reporter.lines


def test_what_the_run_held_out_is_scored(cases):
    cases.document["dataset_config"]["volume_paths"][0]["split"] = None
    task = cases.task(volumes="val")
    regions = [[[2, 6], [0, 9], [1, 13]], [[0, 6], [0, 9], [0, 13]]]
    (cases.folder / "run").mkdir()
    write_json(
        Run(task.run_dir).splits_file,
        {"volumes": ["a", "b"], "train_regions": [None, None], "val_regions": regions},
    )
    found = {v.name: v.targets["sheet"].figures["dice"] for v in evaluate(task).report.volumes}
    assert found == {"a": cases.dice("a", at=np.s_[2:6, :, 1:13]), "b": cases.dice("b")}
    boxed = evaluate(task, bbox=[(0, 3), (0, 9), (0, 5)]).report
    assert boxed.volumes[0].targets["sheet"].figures["dice"] == cases.dice("a", at=np.s_[:3, :, :5])


def test_results_of_a_pattern_are_found_by_their_inputs(cases):
    """The result is named after the `*`, the volume by its entry."""
    for entry in cases.document["dataset_config"]["volume_paths"]:
        entry["name"] = f"case-{entry['name']}"
    cases.document["inference_params"]["input_path"] = f"{cases.folder}/data.zarr/*/raw"
    found = evaluate(cases.task(volumes="test")).report
    assert [v.name for v in found.volumes] == ["case-c", "case-d"]
    assert found.volumes[1].targets["sheet"].figures["dice"] == cases.dice("d")


def test_parts_of_one_array_share_its_result(cases):
    parts = [
        cases.entry("a", "test", name=name, bbox=[[z, z + 3], [0, 9], [0, 13]])
        for name, z in (("a", 0), ("upper", 3))
    ]
    cases.document["dataset_config"]["volume_paths"] = [cases.entry("b", "train"), *parts]
    report = evaluate(cases.task(volumes="test")).report
    assert [v.targets["sheet"].figures["dice"] for v in report.volumes] == [
        cases.dice("a", at=np.s_[:3]), cases.dice("a", at=np.s_[3:]),
    ]  # fmt: skip
    assert len({v.prediction for v in report.volumes}) == 1


def test_the_single_result_stands_for_its_volume(cases):
    cases.document["inference_params"]["input_path"] = f"{cases.folder}/data.zarr/c/raw"
    (cases.folder / "out/net/c.zarr").rename(cases.folder / "out/net.zarr")
    scores = evaluate(cases.task(volumes="test"))
    assert [v.targets["sheet"].figures["dice"] for v in scores.report.volumes] == [
        cases.dice("c"), cases.dice("d"),
    ]  # fmt: skip


def test_volumes_without_a_result_are_named_before_anything_is_scored(cases):
    (cases.folder / "out/net/c.zarr").rename(cases.folder / "moved.zarr")
    reporter = Silent()
    message = (
        r"evaluation.volumes: 1 of 2 volumes have no finished prediction: c; predict them: "
        r"vcmodels infer TASK --set 'inference_params.volumes=\"test\"'"
    )
    with pytest.raises(VolumeError, match=message):
        evaluate(cases.task(volumes="test"), output=cases.folder / "report", reporter=reporter)
    assert not (cases.folder / "report").exists()
    cases.codes["x"] = cases.codes["c"]
    cases.predict("x", "out/net/c.zarr", complete=False)
    with pytest.raises(VolumeError, match="have no finished prediction: c"):
        evaluate(cases.task(volumes="test"))


def test_a_volume_without_a_label_is_left_out_and_named(cases):
    config, raw = cases.document["dataset_config"], f"{cases.folder}/data.zarr/c/raw"
    config["targets"]["depth"] = {"kind": "regression"}
    config["volume_paths"][2] |= {"sheet": None, "depth": raw}
    cases.document["inference_params"]["output_targets"] = ["sheet"]
    reporter = Silent()
    report = evaluate(cases.task(volumes="test"), reporter=reporter).report
    assert [v.name for v in report.volumes] == ["d"]
    assert "note: c has no label of these, and is left out" in reporter.lines


def test_groups_have_means_of_their_own(cases):
    for name, group in (("c", "x"), ("d", "y")):
        entries = cases.document["dataset_config"]["volume_paths"]
        entries["abcd".index(name)]["group"] = group
    report = evaluate(cases.task(volumes="test")).report
    assert report.groups == ("x", "y")
    assert report.means("sheet", "y")["dice"] == cases.dice("d")


def test_a_report_and_a_table_are_kept(cases):
    folder, made = cases.folder / "new/report", {"path": "net_best.pth", "sha256": "ab" * 32}
    for name in "cd":
        notes = {
            "provenance": {"checkpoint": made["path"]},
            "manifest": {"checkpoint_sha256": made["sha256"]},
        }
        group = str(cases.folder / f"out/net/{name}.zarr")
        set_group_attributes(group, {"vcmodels": notes})
    scores = evaluate(cases.task(volumes="test"), output=folder)
    names = {"report.json", "scores.csv", "report.html", "pictures"}
    assert {path.name for path in folder.iterdir()} == names
    kept = Report.from_json(json.loads((folder / "report.json").read_text()))
    assert kept.means("sheet") == scores.report.means("sheet")
    assert kept.provenance["run"] == str(cases.folder / "run")
    assert kept.provenance["checkpoints"] == [made]
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["volume"], row["split"], row["target"]) for row in rows] == [
        ("c", "test", "sheet"), ("d", "test", "sheet"),
    ]  # fmt: skip
    assert [float(row["dice"]) for row in rows] == [cases.dice("c"), cases.dice("d")]


def note_checkpoint(cases, name, path, digest, **manifest):
    """Write on a result with what it was made."""
    notes = {
        "provenance": {"checkpoint": path},
        "manifest": {"checkpoint_sha256": digest, **manifest},
    }
    set_group_attributes(str(cases.folder / f"out/net/{name}.zarr"), {"vcmodels": notes})


def sealed(path, body):
    """A file that ends as a checkpoint does; its sha256."""
    digest = hashlib.sha256(body).digest()
    path.write_bytes(body + TRAILER + digest)
    return digest.hex()


def notes_of(cases, output=None):
    reporter = Silent()
    evaluate(cases.task(volumes="test"), output=output, reporter=reporter)
    return [line for line in reporter.lines if line.startswith("note: ")]


def test_a_checkpoint_that_has_changed_since_it_predicted_is_named(cases):
    one, two = cases.folder / "one.pth", cases.folder / "two.pth"
    first, second = sealed(one, b"1"), sealed(two, b"2")
    note_checkpoint(cases, "c", str(one), first)
    note_checkpoint(cases, "d", [str(one), str(two)], sorted([first, second]))
    assert notes_of(cases) == []
    sealed(two, b"3")
    (note,) = notes_of(cases)
    assert f"note: {two} has changed since it predicted" in note
    one.unlink()  # not there any more: nothing is known
    two.write_bytes(b"cut")
    assert notes_of(cases) == []


def test_a_report_of_other_results_is_named_when_it_is_replaced(cases):
    folder = cases.folder / "report"
    for name in "cd":
        note_checkpoint(cases, name, "net_best.pth", "ab" * 32)
    assert notes_of(cases, folder) == []
    assert notes_of(cases, folder) == []  # the same results
    note_checkpoint(cases, "d", "net_best.pth", "ab" * 32, overlap=[0.5] * 3)
    (note,) = notes_of(cases, folder)
    assert "scored other results of the same checkpoint" in note
    for name in "cd":
        note_checkpoint(cases, name, "net_best.pth", "cd" * 32)
    (note,) = notes_of(cases, folder)
    assert "net_best.pth (abababab) predicted, this one net_best.pth (cdcdcdcd)" in note
    (folder / "report.json").write_text('{\n "schema": 1, "provenance": []}')
    assert notes_of(cases, folder) == []


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"sheets": ["dice"]}, 'evaluation.metrics.sheets: is no target; targets are "sheet"'),
        ({"sheet": ["dise"]}, r'"dise" is no metric of what is predicted; choose from dice, '),
        ({"sheet": ["dice", "dice"]}, '"dice" is named twice'),
        ({"sheet": [{"dice": {"at": 1}}]}, '"at" is no option of dice; leave it out'),
        ({"sheet": [{"dice": {}}, {"iou": {}, "dice": {}}]}, '"dice" is named twice'),
        ({"sheet": [{}]}, "an object names no metric"),
    ],
)
def test_metrics_that_there_are_not_are_refused_with_the_choices(cases, metrics, message):
    with pytest.raises(TaskError, match=message):
        cases.task(metrics=metrics)


def test_options_of_a_metric_have_an_effect_and_are_checked(cases):
    def surface_dice(tolerance):
        block = {"surface": {"tolerances": [tolerance]}}
        return evaluate(cases.task(metrics={"sheet": [block]}))["sheet"]["surface_dice"]

    assert surface_dice(0.0) < surface_dice(2.5)
    with pytest.raises(TaskError, match="tolerances of surface is"):
        cases.task(metrics={"sheet": [{"surface": {"tolerances": "near"}}]})
    with pytest.raises(TaskError, match=r'"x" is no option of surface; choose from .*tolerances'):
        cases.task(metrics={"sheet": [{"surface": {"x": 1}}]})


def test_the_command_keeps_a_report_in_the_run_and_fails_under_a_limit(cases, capsys):
    task = cases.folder / "task.json"
    task.write_text(json.dumps(cases.document))
    assert main(["evaluate", str(task), "--volumes", "test", "--fail-under", "dice=0.01"]) == 0
    kept = json.loads((cases.folder / "run/evaluation/report.json").read_text())
    assert [volume["name"] for volume in kept["volumes"]] == ["c", "d"]
    words = ["evaluate", str(task), "--volumes", "c", "-o", str(cases.folder / "r"), "--json"]
    capsys.readouterr()
    assert main([*words, "--fail-under", "sheet.dice=0.99"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["volumes"][0]["name"] == "c"
    assert "failed: sheet.dice is 0." in captured.err
    assert main([*words, "--fail-under", "sheet.dise=0.99"]) == 2
    assert 'no figure "dise" of sheet' in capsys.readouterr().err


def test_nothing_chosen_is_refused(cases):
    for entry in cases.document["dataset_config"]["volume_paths"]:
        entry["split"] = "train"
    with pytest.raises(TaskError, match=r'evaluation.volumes: is "test", and there is no such'):
        evaluate(cases.task(volumes="test"))
    with pytest.raises(TaskError, match="nothing of the chosen volumes lies in the bbox"):
        evaluate(cases.task(volumes="all"), bbox=[(50, 60), (0, 9), (0, 9)])
    with pytest.raises(RefusedError, match='"x" is no volume; they are a, b, c, d'):
        evaluate(cases.task(volumes=["x"]))


def test_a_result_that_was_predicted_by_name_is_found_where_that_of_a_pattern_is_missing(cases):
    """Else the remedy, to predict volumes by name, leads nowhere."""
    for entry in cases.document["dataset_config"]["volume_paths"]:
        entry["name"] = f"case-{entry['name']}"
    cases.document["inference_params"]["input_path"] = f"{cases.folder}/data.zarr/*/raw"
    task = cases.task(volumes="test")
    (cases.folder / "out/net/d.zarr").rename(cases.folder / "moved.zarr")
    with pytest.raises(VolumeError, match="1 of 2 volumes have no finished prediction: case-d"):
        evaluate(task)
    (cases.folder / "moved.zarr").rename(cases.folder / "out/net/case-d.zarr")
    found = evaluate(task).report.volumes
    assert found[1].targets["sheet"].figures["dice"] == cases.dice("d")


def test_one_chosen_volume_without_a_result_is_named_with_what_predicts_it(cases):
    (cases.folder / "out/net/c.zarr").rename(cases.folder / "moved.zarr")
    message = (
        r"1 of 1 volumes have no finished prediction: c; predict them: vcmodels infer TASK "
        r"--fold 1 --set 'inference_params.volumes=\[\"c\"\]'"
    )
    cases.document["tr_params"]["folds"] = {"count": 2, "index": 1}
    with pytest.raises(VolumeError, match=message):
        evaluate(cases.task(volumes=["c"]))


def test_the_first_part_that_has_a_label_is_drawn(cases):
    config, raw = cases.document["dataset_config"], f"{cases.folder}/data.zarr/c/raw"
    config["targets"]["depth"] = {"kind": "regression"}
    config["volume_paths"][2] |= {"sheet": None, "depth": raw}
    cases.document["inference_params"]["output_targets"] = ["sheet"]
    pictures = cases.folder / "both.png", cases.folder / "alone.png"
    evaluate(cases.task(volumes="test"), overlay=pictures[0])
    evaluate(cases.task(volumes=["d"]), overlay=pictures[1])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_of_all_folds_what_no_fold_trains_on_is_scored(cases, capsys):
    cases.document["tr_params"]["folds"] = {"count": 2}
    cases.document["dataset_config"]["volume_paths"][1]["split"] = "train"
    cases.document["inference_params"]["volumes"] = "test"
    task = cases.folder / "task.json"
    task.write_text(json.dumps(cases.document))
    assert main(["evaluate", str(task)]) == 0
    assert "scoring sheet on 2 volumes" in capsys.readouterr().out
    assert main(["evaluate", str(task), "--volumes", "val"]) == 2
    assert "nothing is held out of all folds" in capsys.readouterr().err


def test_a_volume_of_which_nothing_lies_in_the_bbox_is_named(cases):
    upper = cases.entry("d", "test", name="upper", bbox=[[3, 6], [0, 9], [0, 13]])
    cases.document["dataset_config"]["volume_paths"][3] = upper
    cases.codes["upper"] = cases.codes["d"]
    cases.predict("upper")
    reporter = Silent()
    evaluate(cases.task(volumes="test"), bbox=[(0, 3), (0, 9), (0, 13)], reporter=reporter)
    assert not any("left out" in line for line in reporter.lines)
    cases.document["inference_params"]["bbox"] = [[0, 3], [0, 9], [0, 13]]
    report = evaluate(cases.task(volumes="test"), reporter=reporter).report
    assert [volume.name for volume in report.volumes] == ["c"]
    assert "note: nothing of upper lies in the bbox: it is left out" in reporter.lines


@pytest.mark.parametrize(
    ("name", "text"),
    [("report.json", '{"mine": 1}'), ("scores.csv", "a,b\n"), ("report.html", "<html></html>")],
)
def test_files_of_others_stay_and_are_named_before_anything_is_measured(cases, name, text):
    folder = cases.folder / "report"
    evaluate(cases.task(volumes="test"), output=folder)
    evaluate(cases.task(volumes="test"), output=folder)  # ours are replaced
    (folder / name).write_text(text)
    reporter = Silent()
    with pytest.raises(OutputError, match=rf"{name}.* is there, and is no"):
        evaluate(cases.task(volumes="test"), output=folder, reporter=reporter)
    assert ((folder / name).read_text(), reporter.lines) == (text, [])
    with pytest.raises(OutputError, match="is a file; name a folder"):
        evaluate(cases.task(volumes="test"), output=folder / name)
