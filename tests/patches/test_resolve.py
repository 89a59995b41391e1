import time

import pytest
import zarr

from vcmodels.config import parse_task
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.patches import resolve as patch_sizes
from vcmodels.patches.resolve import plan_sizes, recorded_task, resolve
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A task without sizes on volumes of these shapes, on a CPU with 64 GB."""
    monkeypatch.setattr(patch_sizes, "memory_bytes", lambda _: 64_000_000_000)

    def build(*shapes, entry=None, model=None, **settings):
        entries = []
        for number, shape in enumerate(shapes):
            group = tmp_path / f"{number}.zarr"
            for name in ("ct", "sheet"):
                zarr.create_array(
                    group / name, shape=shape, chunks=(32, 64, 64), dtype="u1", overwrite=True
                )
            paths = {"input": str(group / "ct"), "sheet": str(group / "sheet")}
            entries.append(paths | (entry or {}))
        data = {
            "tr_params": {
                "model_name": "m", "device": "cpu", "amp": "bf16",
                "ckpt_out_base": str(tmp_path / "run"), **settings,
            },
            "model_config": model or {},
            "volume_paths": entries,
            "targets": {"sheet": {"channels": 1}},
        }  # fmt: skip
        task, _ = parse_task(data, "t")
        return task

    return build


def planned(task, volumes=None):
    volumes = open_volumes(task) if volumes is None else volumes
    return plan_sizes(task.tr_params, task.model, task.heads, volumes)


def test_memory_is_given_or_the_targets_of_the_preset_or_what_is_there(make, monkeypatch):
    def line(**keys):
        return planned(make((512, 512, 512), tr_val_split=1, **keys)).reasons[0]

    assert line() == (
        "memory 8.0 GB: what the network is meant for; 25% of 64.0 GB (cpu) would be there, "
        "16-bit convolutions"
    )
    assert line(memory_gb=24) == "memory 24.0 GB: tr_params.memory_gb, 16-bit convolutions"
    assert line(model={"preset": "L"}).startswith("memory 16.0 GB: 25% of 64.0 GB (cpu)")
    monkeypatch.setattr(patch_sizes, "memory_bytes", lambda _: 4_000_000_000)
    assert line(amp="off") == "memory 1.0 GB: 25% of 4.0 GB (cpu), float32"


def test_a_plan_is_that_of_nnunet_and_takes_no_time(make):
    task = make((512, 512, 512), tr_val_split=1, memory_gb=24)
    volumes = open_volumes(task)
    started = time.process_time()
    plan = planned(task, volumes)
    assert time.process_time() - started < 1
    assert (plan.patch, plan.batch) == ((192, 192, 192), 2)
    assert plan.tried[-1].patch == plan.patch
    assert plan.reasons[-1].endswith("decodes 2.0 times its voxels, in chunks of 32 x 64 x 64")


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({}, 96 // 3),
        ({"split_guard": 8}, 40),  # (96 - 8) / 2 is 44
        ({"split_mode": "random"}, 96),
        ({"tr_val_split": 1}, 96),
        ({"folds": {"count": 3}}, 16),
    ],
    ids=["spatial", "guard", "random", "no validation", "folds"],
)
def test_a_volume_that_is_cut_in_two_leaves_room_for_both_sides(make, settings, longest):
    assert planned(make((40, 96, 56), **settings)).patch == (40, longest, 56)


def test_a_patch_of_a_tiny_volume_leaves_room_for_two_without_a_guard(make):
    assert planned(make((8, 8, 11))).patch == (8, 8, 5)


def test_volumes_with_a_split_of_their_own_are_not_cut(make):
    assert planned(make((40, 96, 56), entry={"split": "val"})).patch == (40, 96, 56)
    assert planned(make((40, 96, 56), entry={"split": "train"})).patch == (40, 96, 56)


def test_volumes_that_a_group_keeps_whole_are_not_cut(make):
    shapes = ((40, 96, 56), (40, 96, 56))
    assert planned(make(*shapes)).patch == (40, 32, 56)
    assert planned(make(*shapes, entry={"group": "a"})).patch == (40, 96, 56)


def test_beside_a_validation_volume_the_others_are_trained_on_whole(make):
    volumes = open_volumes(make((40, 96, 56), entry={"split": "val"}))
    task = make((40, 96, 56))
    assert planned(task, [*volumes, *open_volumes(task)]).patch == (40, 96, 56)
    volumes = open_volumes(make((40, 96, 56), entry={"split": "train"}))
    assert planned(task, [*volumes, *open_volumes(make((40, 96, 56)))]).patch == (40, 32, 56)


def test_the_median_volume_is_covered_and_the_batch_grows_to_a_share_of_all(make):
    """nnU-Net plans 9 patches of 40 x 56 x 40 for the 260 cases of the hippocampus, too."""
    task = make((36, 50, 35), (20, 20, 20), (60, 90, 80))
    usual, small, large = open_volumes(task)
    plan = planned(task, [small, *[usual] * 258, large])
    assert (plan.patch, plan.batch) == ((40, 56, 40), 9)
    few = make((36, 50, 35), split_mode="random", memory_gb=0.45)  # two of them need 0.38
    assert planned(few, open_volumes(few) * 260).batch == 2


def test_a_given_batch_makes_the_patch_smaller(make):
    patches = [
        planned(make((512, 512, 512), tr_val_split=1, batch_size=n)).patch for n in (1, 2, 8)
    ]
    assert patches[0] > patches[1] > patches[2]


def test_what_is_given_stays_and_nothing_is_said(make):
    task, reporter = make((40, 96, 56), patch_size=[16, 32, 32]), Silent()
    full = resolve(task, reporter).task
    assert full is task
    assert task.tr_params.batch_size == 2
    assert not [line for line in reporter.lines if "patch_size" in line]
    assert planned(task).tried == []


def test_the_planned_patch_obeys_the_other_keys(make):
    with pytest.raises(TaskError, match=r"network takes none of the patches .*give one"):
        resolve(make((8, 12, 12), model={"num_levels": 6}))
    task = make((40, 96, 56))
    config = task.dataset_config.model_copy(update={"patch_stride": (64, 64, 64)})
    with pytest.raises(TaskError, match=r"^dataset_config\.patch_stride: .*exceeds tr_params"):
        resolve(task.model_copy(update={"dataset_config": config}))


def test_a_recorded_task_that_cannot_be_read_is_none(make):
    task = make((40, 96, 56))
    assert recorded_task(Run(task.run_dir)) is None
    task.run_dir.mkdir()
    for text in ("{", "[]", '{"tr_params": {}}'):
        (task.run_dir / "task.json").write_text(text)
        assert recorded_task(Run(task.run_dir)) is None
