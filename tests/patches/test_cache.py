import json
import os
from pathlib import Path

import numpy as np
import pytest

from vcmodels.data.volumes import open_volumes
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.find import PatchList, search_patches
from vcmodels.reporting import Silent


@pytest.fixture
def world(make_task, store, blobs):
    """A function that builds task and volumes anew with some changes, and returns both."""
    raw = store("raw", np.zeros(blobs.shape, np.uint8))
    labels = store("sheet", blobs)

    def build(entry=None, **sections):
        entries = [{"input": raw, "sheet": labels, "ref_label": "sheet", **(entry or {})}]
        task = make_task(entries, **sections)
        return task, open_volumes(task)

    return build


def ask(world, *args, **sections):
    """Rows, and what was said."""
    task, volumes = world(*args, **sections)
    reporter = Silent()
    found = load_or_find_patches(task, volumes, reporter)
    np.testing.assert_array_equal(found.rows, search_patches(task, volumes).rows)
    return found.rows, " | ".join(reporter.lines)


def test_second_run_reads_the_file_and_no_label(world, monkeypatch):
    first, said = ask(world)
    assert "finding patches: there is no" in said
    task, volumes = world()
    document = json.loads(task.cache_file.read_text())
    assert document["patches"] == first.tolist()
    assert document["patch_size"] == [8, 8, 8]
    monkeypatch.setattr("vcmodels.patches.cache.search_patches", None)
    reporter = Silent()
    again = load_or_find_patches(task, volumes, reporter)
    np.testing.assert_array_equal(again.rows, first)
    assert f"{len(first)} patches from" in reporter.lines[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"patch_size": [8, 8, 10]}, r"patch_size was [8, 8, 8], now [8, 8, 10]"),
        ({"dataset": {"patch_stride": [4, 4, 8]}}, "patch_stride was [4, 4, 4], now [4, 4, 8]"),
        ({"dataset": {"min_bbox_percent": 0.2}}, "min_bbox_percent was 0.1, now 0.2"),
        ({"dataset": {"min_labeled_ratio": 0.02}}, "min_labeled_ratio was 0.01, now 0.02"),
        ({"dataset": {"labeled_ratio_of": "patch"}}, "labeled_ratio_of was box, now patch"),
        ({"ignore_label": 3}, "volumes[0].ignore_label was [], now [3]"),
        ({"entry": {"bbox": [[0, 20], [0, 25], [0, 30]]}}, "volumes[0].region was"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_a_change_is_named_and_the_list_found_again(world, change, reason):
    ask(world)
    rows, said = ask(world, **change)
    assert reason in said
    _, said = ask(world, **change)
    assert f"{len(rows)} patches from" in said


def test_a_changed_label_is_noticed_though_its_time_is_put_back(world, store, blobs):
    ask(world)
    other = Path(store("other", np.where(blobs > 0, 7, 0).astype(np.uint8)[:, ::-1]))
    array = Path(world()[1][0].ref.location)
    for path in [p for p in (array / "c").rglob("*") if p.is_file()]:
        status, new = path.stat(), other / path.relative_to(array)
        if new.exists():
            path.write_bytes(new.read_bytes())
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    _, said = ask(world)
    assert "volumes[0].label content has changed" in said


def mutations(text):
    document = json.loads(text)
    yield "empty", ""
    yield "cut", text[: len(text) // 2]
    yield "list", "[]"
    yield "numbers", "[1, 2]"
    yield "text", '"patches"'
    yield "deep", "[" * 100_000
    yield "nan", text.replace('"patches": [[0', '"patches": [[NaN')
    for name, rows in {
        "none": [],
        "flat": [0, 0, 0, 0],
        "short": [[0, 0, 0]],
        "ragged": [[0, 0, 0, 0], [0]],
        "float": [[0, 0.5, 0, 0]],
        "text": [["0", "0", "0", "0"]],
        "huge": [[0, 10**30, 0, 0]],
        "outside": [[0, 10**9, 0, 0]],
        "negative": [[0, -1, 0, 0]],
        "volume": [[1, 0, 0, 0]],
        "moved": [[0, 1, 1, 1], *document["patches"][1:]],
        "missing": document["patches"][:-1],
        "object": {"a": 1},
    }.items():
        yield f"rows {name}", json.dumps({**document, "patches": rows})
    for key in document:
        if key != "volumes":
            yield f"no {key}", json.dumps({k: v for k, v in document.items() if k != key})
    yield "schema", json.dumps({**document, "schema": 2})


def test_a_damaged_or_edited_file_is_replaced_with_the_reason_told(world):
    ask(world)
    path = world()[0].cache_file
    good = path.read_bytes()
    cases = list(mutations(good.decode()))
    assert len(cases) > 20
    for name, text in cases:
        path.write_text(text)
        _, said = ask(world)
        assert said.startswith(f"finding patches: {path}"), name
        assert path.read_bytes() == good, name


def test_the_originals_bare_list_is_used_as_it_is(world):
    task, volumes = world()
    items = [
        {"volume_idx": 0, "start_pos": [3, 5, 7]},
        {"volume_idx": 0, "start_pos": [1, 2, 3]},
    ]
    task.cache_file.parent.mkdir(parents=True)
    task.cache_file.write_text(json.dumps(items))
    reporter = Silent()
    found = load_or_find_patches(task, volumes, reporter)
    assert found.rows.tolist() == [[0, 1, 2, 3], [0, 3, 5, 7]]
    assert "nothing tells whether it is up to date" in reporter.lines[0]
    assert json.loads(task.cache_file.read_text()) == items


def test_a_bare_list_that_does_not_fit_the_volume_is_replaced(world):
    task, _ = world()
    task.cache_file.parent.mkdir(parents=True)
    task.cache_file.write_text(json.dumps([{"volume_idx": 0, "start_pos": [13, 0, 0]}]))
    _, said = ask(world)
    assert "outside of volume 0" in said


def test_an_unwritable_folder_is_told_and_does_not_stop(world, tmp_path):
    (tmp_path / "file").write_text("")
    rows, said = ask(world, dataset={"cache_file": str(tmp_path / "file" / "patches.json")})
    assert len(rows)
    assert "the patch list is not kept" in said


def test_use_cache_false_leaves_the_file_alone(world):
    _, said = ask(world, dataset={"use_cache": False})
    assert "use_cache is false" in said
    assert not world()[0].cache_file.exists()


def test_a_million_rows_stay_under_20_mb():
    from vcmodels.patches.cache import document

    rows = np.random.default_rng(0).integers(1000, 9999, (100_000, 4))
    rows[:, 0] = 0
    text = document(PatchList((64, 64, 64), rows), {}, [])
    assert len(text) * 10 < 20e6


def test_a_pipe_or_device_is_neither_read_nor_replaced(world, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    _, said = ask(world, dataset={"cache_file": str(pipe)})
    assert "pipe is not a file | " in said
    assert "the patch list is not kept" in said
    assert pipe.is_fifo()
