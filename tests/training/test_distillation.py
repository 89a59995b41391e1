"""Students of trained networks: what they learn, what stays as it is, and what is refused."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.config import parse_task
from vcmodels.config.load import anchor
from vcmodels.config.train_params import DistillParams
from vcmodels.data.normalization import ChannelStatistics, Normalization, conversion
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.resolve import resolve
from vcmodels.patches.split import split_patches
from vcmodels.reporting import Silent
from vcmodels.samples.loader import Batch
from vcmodels.samples.training_set import training_set
from vcmodels.training import train
from vcmodels.training.learner import Learner
from vcmodels.training.teachers import distillation

PATCH = (16, 16, 16)


def run(document):
    reporter = Silent()
    task, _ = parse_task(document, "task.json")
    return train(task, reporter=reporter), reporter.lines


def changed(document, folder, **settings):
    copy = json.loads(json.dumps(document))
    copy["tr_params"] |= {"ckpt_out_base": str(folder), **settings}
    return copy


def state_of(document, which="last"):
    folder = Path(document["tr_params"]["ckpt_out_base"])
    return load_checkpoint(folder / f"tiny_{which}.pth").state


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the teacher of this module is."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture
def labelled(sheet_task):
    """A task that leaves a part of its scan to those that need no label."""
    (volume,) = sheet_task["dataset_config"]["volume_paths"]
    volume |= {"bbox": [[0, 24], [0, 60], [0, 56]], "name": "known"}
    sheet_task["dataset_config"]["targets"]["normals"]["orientation"] = "axial"
    return sheet_task


@pytest.fixture
def teacher(labelled, kept):
    """The best checkpoint of a network that is larger."""
    document = changed(labelled, kept / "teacher", max_epoch=1)
    document["model_config"]["f_maps"] = [4, 12]
    if not (kept / "teacher").exists():
        assert run(document)[0] == 0
    return kept / "teacher" / "tiny_best.pth"


@pytest.fixture
def student(labelled, teacher, phantom, tmp_path):
    """A task that learns from the teacher, in a part without labels, too."""
    labelled["dataset_config"]["volume_paths"].append(
        {"input": str(phantom / "ct"), "bbox": [[0, 24], [60, 96], [0, 56]], "name": "plain"}
    )
    distill = {"teachers": [str(teacher)], "weight": 2.0}
    return changed(labelled, tmp_path / "student", distill=distill)


def lesson(document, *paths, **settings):
    """The loss of teachers on images of a task."""
    task, _ = parse_task(document, "task.json")
    volumes = open_volumes(task)
    networks = [build_network(load_checkpoint(Path(path))) for path in paths]
    told = DistillParams(teachers=[str(path) for path in paths], **settings)
    targets, device = task.dataset_config.targets, torch.device("cpu")
    normalization = networks[0].normalization
    return distillation(networks, targets, told, normalization, volumes, device, "off")


def batch(seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, 1, *PATCH, generator=generator), {}, {}, ())


def test_a_teacher_stays_as_it_is_and_a_student_does_not(student, teacher):
    before = teacher.read_bytes()
    code, lines = run(student)
    assert code == 0
    assert teacher.read_bytes() == before
    assert state_of(student)["teachers"] == [load_checkpoint(teacher).sha256]
    curves = Path(student["tr_params"]["ckpt_out_base"]) / "tensorboard" / "tiny"
    events = EventAccumulator(str(curves))
    events.Reload()
    points = events.Scalars("train/distill_sheet")
    assert len(points) == 6
    assert all(point.value > 0 for point in points)
    assert any("as the teacher is used to" in line for line in lines)


def test_the_weights_of_a_teacher_in_memory_get_no_gradient(student, teacher):
    told = lesson(student, teacher)
    before = [p.clone() for p in told.teachers[0].module.parameters()]
    network = build_network(load_checkpoint(teacher)).module.requires_grad_().train()
    losses = told.losses(batch(1), network(batch(0).image))
    sum(loss.sum() for loss in losses.values()).backward()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())
    for was, now in zip(before, told.teachers[0].module.parameters(), strict=True):
        assert now.grad is None
        assert torch.equal(was, now)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(student, teacher):
    told = lesson(student, teacher)
    network = build_network(load_checkpoint(teacher)).module
    own = told.losses(batch(), network(batch().image))
    assert own.keys() == {"sheet", "normals"}
    # The floor of the cosine: lengths of 0.05 make 1 - cos^2 of equal axes 4e-4.
    for name, most in (("sheet", 1e-5), ("normals", 1e-3)):
        assert own[name].shape == (2,)
        assert own[name].abs().max() < most
    others = told.losses(batch(), network(batch(1).image))
    for name, loss in others.items():
        assert loss.min() > 10 * own[name].abs().max()


def test_the_loss_is_that_of_the_mean_of_all_teachers_where_they_are_sure(
    student, teacher, labelled, kept
):
    other = kept / "other" / "tiny_best.pth"
    second = changed(labelled, kept / "other", max_epoch=1, seed=5)
    second["dataset_config"]["volume_paths"] = second["dataset_config"]["volume_paths"][:1]
    run(second)
    told = lesson(student, teacher, other, confidence=0.55)
    image = batch().image
    networks = [build_network(load_checkpoint(path)).module for path in (teacher, other)]
    with torch.no_grad():
        mean = sum(net(image)["sheet"][0].double().sigmoid() for net in networks) / 2
    logits = {
        "sheet": [torch.zeros(2, 1, *PATCH)],
        "normals": [torch.ones(2, 3, *PATCH)],
    }
    p, q = mean.numpy(), 0.5
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / q)
    sure = np.maximum(p, 1 - p) >= 0.55
    assert 0 < sure.mean() < 1
    wanted = (divergence * sure).mean((1, 2, 3, 4))
    found = told.losses(batch(), logits)["sheet"].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_step_adds_the_mean_over_its_samples_times_the_weight(student, teacher):
    """Divided into micro-batches of one, a step learns the same."""
    task, _ = parse_task(student, "task.json")
    settings = task.tr_params.model_copy(update={"ema_decay": None})
    targets = task.dataset_config.targets
    told = lesson(student, teacher, weight=2.0)
    whole = batch(3)
    labels = {
        "sheet": (whole.image > 0).float(),
        "normals": torch.nn.functional.normalize(torch.ones(2, 3, *PATCH), dim=1),
    }
    valid = {name: torch.ones(2, 1, *PATCH, dtype=torch.bool) for name in labels}
    for one in valid.values():
        one[1] = False  # a patch without labels
    whole = replace(whole, labels=labels, valid=valid, places=(None, None))
    found = []
    for parts in ([whole], list(whole.singles())):
        torch.manual_seed(0)
        network = task.model.build(1, {"sheet": 1, "normals": 3}, PATCH, (1.0, 1.0, 1.0))
        learner = Learner(network, targets, settings, torch.device("cpu"))
        plain = learner.run(network, whole)
        wanted = {n: float(loss.detach().mean()) for n, loss in told.losses(whole, plain).items()}
        learner.lessons = [told]
        found.append(learner.train_step(parts))
        for name, value in wanted.items():
            assert found[-1].read().taught[f"distill_{name}"] == pytest.approx(value, rel=1e-5)
    one, other = (result.values for result in found)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    result = found[0].read()
    labels = sum(targets[name].weight * value for name, value in result.losses.items())
    taught = sum(2.0 * value for value in result.taught.values())
    assert float(one[0]) == pytest.approx(labels + taught, rel=1e-5)


def stop_after(monkeypatch, step):
    original = Learner.train_step

    def train_step(self, batches, **kwargs):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches, **kwargs)

    monkeypatch.setattr(Learner, "train_step", train_step)


def test_a_stopped_student_continues_bit_for_bit(student, tmp_path, monkeypatch):
    whole, parts = changed(student, tmp_path / "whole"), changed(student, tmp_path / "parts")
    assert run(whole)[0] == 0
    with monkeypatch.context() as context:
        stop_after(context, 1)
        assert run(parts)[0] == 128 + signal.SIGTERM
    assert run(parts)[0] == 0
    for part in ("model", "ema"):
        for name, value in state_of(whole)[part].items():
            assert torch.equal(value, state_of(parts)[part][name]), name


def test_another_teacher_by_the_same_name_is_refused_in_the_middle(
    student, teacher, tmp_path, monkeypatch
):
    copy = tmp_path / "copy.pth"
    shutil.copy(teacher, copy)
    student["tr_params"]["distill"]["teachers"] = [str(copy)]
    with monkeypatch.context() as context:
        stop_after(context, 1)
        run(student)
    shutil.copy(tmp_path / "student" / "tiny_last.pth", copy)
    before = (tmp_path / "student" / "tiny_last.pth").read_bytes()
    with pytest.raises(TaskError, match=r"distill.teachers: have changed"):
        run(student)
    assert (tmp_path / "student" / "tiny_last.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("orientation", "oriented", "target \"normals\" has orientation='axial'"),
        ("rename", "layer", "no target .layer. is one of all"),
        ("spacing", [9.0, 9.0, 9.0], "was trained on voxels of"),
        ("scheme", "ct", "normalization zscore per .*, the student has ct"),
    ],
)
def test_a_teacher_that_fits_no_image_or_target_of_the_student_is_refused(
    student, tmp_path, key, value, match
):
    config = student["dataset_config"]
    if key == "orientation":
        config["targets"]["normals"][key] = value
    elif key == "scheme":
        config["normalization"] = {"scheme": "ct", "per": "global"}
    elif key == "rename":
        config["targets"] = {value: config["targets"]["sheet"]}
        first = config["volume_paths"][0]
        del first["normals"]
        first[value] = first.pop("sheet")
        first["ref_label"] = value
    else:
        for volume in config["volume_paths"]:
            volume[key] = value
    with pytest.raises(TaskError, match=match):
        run(student)
    assert not (tmp_path / "student" / "tiny_last.pth").exists()


def statistics(mean, sd):
    return ChannelStatistics(mean, sd, mean - 3 * sd, mean + 3 * sd, mean, sd, mean - sd, mean + sd)


def test_images_of_one_normalisation_are_made_of_those_of_another():
    """By the maps themselves, on voxels as they are stored."""
    stored = np.random.default_rng(0).normal(50, 20, (2, 3, 4, 5)).astype(np.float32)
    here, there = (statistics(50, 20), statistics(40, 30)), (statistics(45, 10), statistics(20, 5))
    ways = [
        Normalization("zscore", channels=here),
        Normalization("zscore", channels=there),
        Normalization("minmax", channels=there),
        Normalization("zscore", per="volume", volumes={"v": (statistics(7, 3), statistics(9, 2))}),
        Normalization("none"),
    ]
    for before in ways:
        for after in ways:
            found = conversion(before, after, "v", 2)
            if after.per == "volume" and before.per != "volume":
                assert found is None  # nothing says what its own statistics are
                continue
            factor = np.reshape(found.factors, (2, 1, 1, 1))
            shift = np.reshape(found.shifts, (2, 1, 1, 1))
            made = before.apply(stored, before.volumes.get("v")) * factor + shift
            wanted = after.apply(stored, after.volumes.get("v"))
            np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)
            assert found.is_identity == (before is after)


def test_what_clips_gives_no_other_images():
    ct = Normalization("ct", channels=(statistics(50, 20),))
    assert conversion(ct, ct, "v", 1).is_identity
    assert conversion(ct, replace(ct, channels=(statistics(51, 20),)), "v", 1) is None
    assert conversion(ct, Normalization("zscore", channels=ct.channels), "v", 1) is None
    by_patch = Normalization("ct", per="patch")
    assert conversion(by_patch, by_patch, "v", 1).is_identity
    assert conversion(ct, by_patch, "v", 1) is None


def test_patches_without_labels_are_drawn_and_no_validation_voxel_is(student):
    task, _ = parse_task(student, "task.json")
    resolved = resolve(task, Silent())
    dataset = training_set(resolved, Silent())
    numbers = set(dataset.rows[:, 0].tolist())
    assert {resolved.volumes[n].name for n in numbers} == {"known", "plain"}
    plain = next(n for n in numbers if resolved.volumes[n].name == "plain")
    assert dataset.rows[dataset.rows[:, 0] == plain][:, 2].min() >= 60
    patches = load_or_find_patches(resolved.task, resolved.volumes)
    split = split_patches(resolved.task.tr_params, resolved.volumes, patches)
    by_name = dict(zip(["known", "plain"], split.val_regions, strict=True))
    assert by_name["plain"] is None
    assert by_name["known"] is not None
    student["dataset_config"]["volume_paths"][1]["bbox"] = [[0, 24], [30, 96], [0, 56]]
    with pytest.raises(TaskError, match="shares voxels with the validation part of known"):
        training_set(resolve(parse_task(student, "task.json")[0], Silent()), Silent())


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_volume_without_labels_is_nothing_to_validate_against(student, split):
    student["dataset_config"]["volume_paths"][1]["split"] = split
    with pytest.raises(TaskError, match="has no label to compare with"):
        parse_task(student, "task.json")


def test_paths_of_teachers_count_from_where_a_run_was_started(student, teacher):
    student["tr_params"]["distill"]["teachers"] = [teacher.name, "s3://bucket/a.pth"]
    anchor(student, teacher.parent)
    found = student["tr_params"]["distill"]["teachers"]
    assert found == [str(teacher), "s3://bucket/a.pth"]
