import json
from dataclasses import replace
from pathlib import Path

import pytest

from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.errors import OutputError, RefusedError
from vcmodels.inference.ensemble import load_networks
from vcmodels.prepare.section import Prepare
from vcmodels.reporting import Silent
from vcmodels.workflows import compare as workflow
from vcmodels.workflows.cohort_scores import HeldOutCohort
from vcmodels.workflows.compare import compare, plan_trainings, variants_of


@pytest.fixture
def tiny(sheet_task, task_file):
    del sheet_task["dataset_config"]["targets"]["normals"]
    del sheet_task["dataset_config"]["volume_paths"][0]["normals"]
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 2, "patch_size": [8, 16, 16]}
    sheet_task["tr_params"]["split_guard"] = 0
    return task_file(sheet_task)


def test_variants_are_all_combinations_and_their_names_are_folders():
    over = ["tr_params.patch_size=[8,16,16],[16,16,16]", "tr_params.initial_lr=1e-3, 1e-4"]
    found = variants_of(["a/one.json", "two.json"], over, ["tr_params.seed=3"])
    assert len(found) == 8
    assert found[1].name == "one_patch_size__8_16_16__initial_lr_1e-4"
    assert found[1].overrides == (
        "tr_params.seed=3", "tr_params.patch_size=[8,16,16]", "tr_params.initial_lr=1e-4",
    )  # fmt: skip
    assert [v.name for v in variants_of(["one.json"], ["a.b=1,2"], [])] == ["b_1", "b_2"]


@pytest.mark.parametrize(
    ("tasks", "over", "message"),
    [
        (["a.json"], ["k=1"], "give a key and its values"),
        (["a.json"], ["1,2"], "give a key and its values"),
        (["a/t.json", "b/t.json"], [], "two variants are called t"),
        (["a.json"], ["k=1/2,1_2"], "two variants are called k_1_2"),
    ],
)
def test_variants_that_cannot_be_told_apart_are_refused(tasks, over, message):
    with pytest.raises(RefusedError, match=message):
        variants_of(tasks, over, [])


def test_seeds_share_a_split_and_folds_have_their_own(tiny, tmp_path):
    variants = variants_of([str(tiny)], ["tr_params.initial_lr=1e-3,1e-2"], [])
    runs = plan_trainings(variants, 2, tmp_path / "out", tmp_path / "out" / "splits.json")
    assert [(r.variant.name, r.label) for r in runs] == [
        ("initial_lr_1e-3", "seed_0"), ("initial_lr_1e-2", "seed_0"),
        ("initial_lr_1e-3", "seed_1"), ("initial_lr_1e-2", "seed_1"),
    ]  # fmt: skip
    assert all(f'tr_params.split_from="{tmp_path}/out/splits.json"' in r.words for r in runs)
    folded = variants_of(
        [str(tiny)], ["tr_params.initial_lr=1e-3,1e-2"], ["tr_params.folds.count=3"]
    )
    runs = plan_trainings(folded, 1, tmp_path / "out", tmp_path / "s")
    assert [r.label for r in runs] == [f"fold_{n}" for n in (0, 0, 1, 1, 2, 2)]
    assert runs[3].words[-2:] == ("--fold", "1")
    assert runs[3].folder == tmp_path / "out" / "initial_lr_1e-2" / "fold_1"


def test_what_cannot_be_compared_is_refused_before_anything_is_written(tiny, tmp_path):
    out = tmp_path / "out"

    def run(over, overrides=(), seeds=1):
        variants = variants_of([str(tiny)], over, list(overrides))
        return compare(variants, seeds, out, jobs=1, reporter=Silent())

    with pytest.raises(RefusedError, match="nothing to compare"):
        run([])
    with pytest.raises(RefusedError, match="only one of them has folds"):
        run(['tr_params.folds=null,{"count": 3}'])
    both = ["tr_params.initial_lr=1e-3,1e-2"]
    with pytest.raises(RefusedError, match="--seeds: is 2, and the tasks have folds"):
        run(both, ["tr_params.folds.count=3"], seeds=2)
    with pytest.raises(RefusedError, match='split_mode: is "random"'):
        run(both, ["tr_params.split_mode=random"])
    with pytest.raises(RefusedError, match="initial_lr"):
        run(["tr_params.initial_lr=1e-3,-1"])
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files"):
        run(["tr_params.initial_lr=1e-3,1e-2"])


@pytest.mark.slow
def test_all_are_trained_on_one_split_and_the_table_is_theirs(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    over = [
        "--over",
        "tr_params.initial_lr=1e-3,1e-2",
        "--over",
        "tr_params.patch_size=[8,16,16],[8,16,32]",
    ]
    words = ["compare", str(tiny), *over, "-o", str(out), "--set", "tr_params.threads=1"]
    # One run is a process; four of them would say no more than two.
    assert main([*words[:4], *words[6:]]) == 0
    table = capsys.readouterr().out
    assert "initial_lr_1e-3" in table
    assert "sheet dice" in table
    places = [out / f"initial_lr_{lr}" / "seed_0" for lr in ("1e-3", "1e-2")]
    splits = [load_checkpoint(p / "tiny_last.pth").state["split"] for p in places]
    shared = json.loads((out / "splits.json").read_text())
    for split in splits:
        assert split["train_regions"] == shared["train_regions"]
        assert split["val_regions"] == shared["val_regions"]

    started = []
    monkeypatch.setattr(workflow, "Child", lambda *a: started.append(a))
    assert main([*words[:4], *words[6:], "--json"]) == 0
    assert not started  # both are complete
    rows = json.loads(capsys.readouterr().out)
    assert [row["runs"] for row in rows] == [1, 1]
    with pytest.raises(OutputError, match="of other variants"):
        compare(
            variants_of([str(tiny)], ["tr_params.seed=1,2"], []), 1, out, jobs=1, reporter=Silent()
        )

    forgotten(tiny, places, tmp_path, capsys)


def forgotten(tiny, places, tmp_path, capsys):
    """Two checkpoints on two cohorts; the second time nothing is predicted."""
    task = json.loads(Path(tiny).read_text())
    task["dataset_config"]["volume_paths"][0] |= {
        "split": "test",
        "bbox": [[0, 24], [0, 32], [0, 32]],
    }
    task["evaluation"] = {"volumes": "test"}
    (tmp_path / "new.json").write_text(json.dumps(task))
    task["tr_params"]["ckpt_out_base"] = str(places[0])
    task["dataset_config"]["volume_paths"][0] |= {"split": None, "bbox": None}
    del task["evaluation"]
    (tmp_path / "old.json").write_text(json.dumps(task))
    words = ["compare", *map(str, places), "--on", str(tmp_path / "old.json"),
             "--on", str(tmp_path / "new.json"), "-o", str(tmp_path / "scores")]  # fmt: skip
    assert main(words) == 0
    table = capsys.readouterr().out
    for word in ("old: sheet", "new: sheet", "change", str(places[1])):
        assert word in table
    assert main([*words, "--json"]) == 0
    output = capsys.readouterr()
    scores = json.loads(output.out)
    assert [(s["checkpoint"], s["cohort"]) for s in scores] == [
        (str(p), c) for p in places for c in ("old", "new")
    ]
    assert " on old: " not in output.err
    assert main([*words, "--jobs", "2"]) == 2
    assert main([*words, "--on", str(tmp_path / "old.json")]) == 2
    assert "old.json is given twice" in capsys.readouterr().err
    assert main([*words, "--set", "dataset_config.prepare.spacing=[1,1,1]"]) == 2
    assert "prepare: is given, and the checkpoint was trained without" in capsys.readouterr().err
    (network,) = load_networks([places[0] / "tiny_best.pth"])
    cohort = json.loads((tmp_path / "new.json").read_text())
    cohort["dataset_config"] |= {"prepare": {"spacing": "median"}}
    (tmp_path / "median.json").write_text(json.dumps(cohort))
    trained = Prepare(spacing=(2.0, 1.0, 1.0))
    learnt = replace(network, task=network.task.with_values(dataset_config={"prepare": trained}))
    made = HeldOutCohort.of(str(tmp_path / "median.json"), [], learnt, Silent())
    assert made.parts[0].volume.spacing == pytest.approx((2, 1, 1))
