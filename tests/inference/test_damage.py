"""A damaged result is named with what repairs it, and that gives back every byte."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from tests.inference.conftest import Workplace
from tests.inference.test_readers import FORMATS, Heads
from vcmodels.errors import OutputError
from vcmodels.inference import RunOptions, claim, predict, predict_request
from vcmodels.inference.journal import Journal
from vcmodels.inference.pyramid import build_pyramid
from vcmodels.reporting import Silent
from vcmodels.targets import MulticlassTarget, RegressionTarget
from vcmodels.volumes import LocalPlace

TARGETS = {"value": RegressionTarget(channels=1), "organ": MulticlassTarget(channels=3)}
BBOX = [[0, 17], [0, 10], [0, 16]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes a finished result of two targets and two levels, once for each format."""
    values = np.random.default_rng(0).random((17, 10, 21), np.float32)
    work = Workplace(tmp_path_factory.mktemp("damage"), values, (8, 8, 8))
    work.network = Heads()
    output, kept = work.folder / "out", work.folder / "kept"

    def run(version, bbox=BBOX, **options):
        task = work.task(pyramid=1, bbox=bbox, **FORMATS[version])
        config = task.dataset_config.model_copy(update={"targets": TARGETS})
        request = work.request(task.model_copy(update={"dataset_config": config}))
        return predict_request(request, RunOptions(**options))

    def fresh(version):
        shutil.rmtree(output, ignore_errors=True)
        if not (kept / version).exists():
            run(version)
            shutil.move(output, kept / version)
        root = shutil.copytree(kept / version, output) / "net.zarr"
        return SimpleNamespace(
            root=root,
            before=contents(root),
            run=lambda *bbox, **options: run(version, *bbox, **options),
            now=lambda: contents(root),
        )

    return fresh


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def attributes(version):
    return ".zattrs" if version == "v2" else "zarr.json"


def document(version):
    return ".zarray" if version == "v2" else "zarr.json"


def chunk(place):
    """The largest stored chunk or shard of an array."""
    files = [p for p in place.rglob("*") if p.is_file() and p.name.isdecimal()]
    return max(sorted(files), key=lambda p: p.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path):
    path.write_bytes(b"")


def no_object(path):
    path.write_text("[]")


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def as_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    **{
        f"{damage.__name__} {place or 'top'}/{what.__name__}": (
            lambda root, version, d=damage, p=place, w=what: d(root / p / w(version))
        )
        for damage, place, what in (
            (cut, "", attributes), (empty, "", attributes), (no_object, "", attributes),
            (delete, "", attributes), (cut, "value", attributes), (delete, "organ", attributes),
            (cut, "OME", attributes), (cut, "value/0", document), (no_object, "organ/1", document),
            (empty, "value/1", document), (delete, "organ/0", document),
        )
    },
    **{
        f"{damage.__name__} chunk of {place}": (
            lambda root, version, d=damage, p=place: d(chunk(root / p))
        )
        for damage, place in (
            (delete, "value/0"), (cut, "organ/0"), (empty, "value/1"), (zero, "value/0"),
            (as_folder, "organ/1"), (delete, "organ/1"),
        )
    },
    "no level 1": lambda root, version: delete(root / "value/1"),
    "no target": lambda root, version: delete(root / "organ"),
    "no list of images": lambda root, version: delete(root / "OME"),
    "cut list of images": lambda root, version: cut(root / "OME/METADATA.ome.xml"),
}  # fmt: skip
V2_ONLY = {
    "no .zgroup": lambda root, version: delete(root / ".zgroup"),
    "cut .zgroup of a target": lambda root, version: cut(root / "value/.zgroup"),
    "cut .zattrs of an array": lambda root, version: cut(root / "value/1/.zattrs"),
}
CASES = [
    pytest.param(version, damage, id=f"{version}: {name}")
    for version in FORMATS
    for number, (name, damage) in enumerate({**DAMAGES, **V2_ONLY}.items())
    if version == "v2" or (number < len(DAMAGES) and number % 4 == 2 * (version == "v3"))
]


@pytest.mark.parametrize(("version", "damage"), CASES)
def test_what_is_damaged_is_named_and_made_again_to_the_same_bytes(made, version, damage):
    work = made(version)
    damage(work.root, version)
    with pytest.raises(OutputError, match=r"run infer.py with --verify, which makes again") as told:
        work.run()
    assert str(work.root) in str(told.value)
    assert "\n" not in str(told.value)
    work.run(verify=True)
    assert work.now() == work.before
    assert work.run().was_complete


@pytest.mark.parametrize("version", FORMATS)
def test_overwriting_a_result_without_readable_metadata_starts_again(made, version):
    work = made(version)
    cut(work.root / attributes(version))
    cut(work.root / "value/0" / document(version))
    (work.root / "mine").mkdir()
    work.run(overwrite=True)
    (work.root / "mine").rmdir()
    assert work.now() == work.before


def test_a_result_of_which_nothing_says_whose_it_is_stays(made):
    work = made("v2")
    for place in ("", "value", "organ"):
        cut(work.root / place / ".zattrs")
    before = work.now()
    for options in ({}, {"verify": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match=r"is not JSON .*choose another output_dir or name"):
            work.run(**options)
    assert work.now() == before


def test_a_result_without_attributes_is_not_taken_for_that_of_another_task(made):
    work = made("v2")
    for name in ("value", "organ"):
        place = work.root / name / ".zattrs"
        text = place.read_text()
        at = text.index('"manifest_sha256": "') + 20
        place.write_text(text[:at] + "0" * 64 + text[at + 64 :])
    cut(work.root / ".zattrs")
    with pytest.raises(OutputError, match=r"holds another result: .*run with --overwrite"):
        work.run(verify=True)
    work.run(overwrite=True)
    assert work.now() == work.before


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("name", ["organ/0", "organ/1"])
def test_a_chunk_in_the_place_of_another_is_noticed_by_its_size(made, version, name):
    work = made(version)
    files = [p for p in sorted((work.root / name).rglob("*")) if p.is_file() and p.name.isdecimal()]
    largest = max(files, key=lambda p: p.stat().st_size)
    other = next(p for p in files if p.stat().st_size != largest.stat().st_size)
    shutil.copy(other, largest)
    with pytest.raises(OutputError, match=r"organ/.: is finished, but .* bytes are stored, which"):
        work.run()
    work.run(verify=True)
    assert work.now() == work.before


def test_a_chunk_where_there_was_none_goes(made):
    work = made("v2")
    shutil.copy(chunk(work.root / "value/0"), work.root / "value/0/2/1/2")
    with pytest.raises(OutputError, match=r"value/0: is finished, but 13 chunks are stored, which"):
        work.run()
    work.run(verify=True)
    assert work.now() == work.before


@pytest.fixture
def half(made):
    """A result that was stopped after some layers, and how the whole one is."""

    def stop(version, after=17):
        work = made(version)
        delete(work.root)
        asked = []
        work.run(should_stop=lambda: asked.append(1) or len(asked) > after)
        return work

    return stop


def journalled(version):
    return sorted((version.root / ".vcmodels").glob("done-*.jsonl"))


UNFINISHED = {
    "cut top": lambda root: cut(root / ".zattrs"),
    "cut target": lambda root: cut(root / "value/.zattrs"),
    "cut array": lambda root: cut(root / "organ/0/.zarray"),
    "cut manifest": lambda root: cut(root / ".vcmodels/manifest.json"),
    "empty manifest": lambda root: empty(root / ".vcmodels/manifest.json"),
    "cut notes": lambda root: cut(journalled(SimpleNamespace(root=root))[0]),
    "list of notes": lambda root: no_object(journalled(SimpleNamespace(root=root))[0]),
}


@pytest.mark.parametrize("damage", UNFINISHED.values(), ids=UNFINISHED)
def test_a_damaged_beginning_is_named_and_continued_to_the_same_bytes(half, damage):
    work = half("v2")
    damage(work.root)
    before = work.now()
    with pytest.raises(OutputError, match=r"run infer.py with --verify, which makes again"):
        work.run()
    assert work.now() == before
    work.run(verify=True)
    assert work.now() == work.before


@pytest.mark.parametrize(
    ("version", "damage"),
    [("v2", delete), ("v2", as_folder), ("v3", empty), ("sharded", cut), ("sharded", delete)],
)
def test_what_was_noted_and_is_lost_is_made_again_when_the_run_continues(half, version, damage):
    work = half(version)
    damage(chunk(work.root / "value/0"))
    reporter = Silent()
    work.run(reporter=reporter)
    assert any("the finest level has lost chunks at (0, 0, 0)" in line for line in reporter.lines)
    assert work.now() == work.before


def test_a_journal_of_before_says_what_is_done_and_no_sizes(half):
    work = half("v2")
    (notes,) = journalled(work)
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    assert all(len(line) == 5 for line in lines)
    notes.write_text("".join(f"{json.dumps(line[:2])}\n" for line in lines))
    assert work.run().patches < 27
    assert work.now() == work.before


def test_a_kill_between_writes_of_metadata_is_continued_by_the_same_command(made, monkeypatch):
    work, write, limit = made("v2"), LocalPlace.write, 0
    while True:
        delete(work.root)
        left = iter(range(limit))

        def killed(place, name, data, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(place, name, data)

        with monkeypatch.context() as context:
            context.setattr(LocalPlace, "write", killed)
            try:
                work.run()
                break
            except KeyboardInterrupt:
                pass
        work.run()
        assert work.now() == work.before
        limit += 3


@pytest.mark.parametrize("version", FORMATS)
def test_overwriting_a_result_without_attributes_leaves_no_voxel_of_another_bbox(made, version):
    work, elsewhere = made(version), [[0, 8], [0, 10], [0, 8]]
    whole = work.before
    delete(work.root)
    work.run(elsewhere)
    expected = work.now()
    assert len(expected) < len(whole)
    delete(work.root)
    work.run()
    delete(work.root / attributes(version))
    work.run(elsewhere, overwrite=True)
    assert work.now() == expected


def test_a_kill_while_verifying_keeps_what_was_noted_of_the_chunks(made, monkeypatch):
    work = made("v2")
    noted = json.loads((work.root / ".zattrs").read_bytes())["vcmodels"]["stored_chunks"]
    files = [p for p in (work.root / "organ/0").rglob("*") if p.is_file() and p.name.isdecimal()]
    first, other = sorted(files, key=lambda p: p.stat().st_size)[:: len(files) - 1]
    shutil.copy(other, first)  # it can be decoded: only what was noted says that it is wrong

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(claim, "find_intact", killed)
        context.setattr(predict, "find_intact", killed)
        with pytest.raises(KeyboardInterrupt):
            work.run(verify=True)
    left = json.loads((work.root / ".zattrs").read_bytes())["vcmodels"]
    assert left["stored_chunks"] == noted
    reporter = Silent()
    work.run(verify=True, reporter=reporter)
    assert any("organ/0: holds other chunks than were written" in line for line in reporter.lines)
    assert work.now() == work.before


@pytest.fixture
def left_over(made, monkeypatch):
    """A finished result of which a kill left the journal, and the folder of its input."""

    def stop(*lost):
        work = made("v2")
        delete(work.root)
        with monkeypatch.context() as context:
            context.setattr(Journal, "remove", lambda _journal: None)
            work.run()
        for pattern in lost:
            for path in (work.root / ".vcmodels").glob(pattern):
                path.unlink()
        return work, work.root.parents[1] / "input.zarr/raw"

    return stop


@pytest.mark.parametrize("lost", [(), ("done-*",), ("inputs.npz",), ("inputs.npz", "done-*")])
@pytest.mark.parametrize("change", ["bytes", "time"])
def test_the_journal_of_a_finished_result_does_not_let_another_input_pass(left_over, lost, change):
    work, raw = left_over(*lost)
    path, before = raw / "0/0/0", work.now()
    given, stamp = path.read_bytes(), path.stat().st_mtime_ns
    try:
        if change == "bytes":
            shutil.copy(raw / "1/0/0", path)
        os.utime(path, ns=(10**18, 10**18))
        for _ in range(2):
            with pytest.raises(OutputError, match="holds another result: input_content was"):
                work.run()
        assert work.now() == before
    finally:
        path.write_bytes(given)
        os.utime(path, ns=(stamp, stamp))
    assert work.run().was_complete
    assert work.now() == work.before


def test_what_is_left_of_the_journal_of_a_finished_result_says_nothing_of_it(left_over):
    work, _ = left_over()
    manifest = work.root / ".vcmodels/manifest.json"
    left = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(left | {"overlap": [0.5, 0.5, 0.5]}))
    assert work.run().was_complete
    assert work.now() == work.before


@pytest.fixture
def after_the_pyramid(made, monkeypatch):
    """A result whose run was killed when all levels were written, and before it was finished."""
    work = made("v2")
    delete(work.root)

    def killed(*given):
        assert build_pyramid(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(predict, "build_pyramid", killed)
        with pytest.raises(KeyboardInterrupt):
            work.run()
    assert any("value/1" in path.read_text() for path in journalled(work))
    return work


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("level", ["value/1", "organ/1", "value/0"])
def test_a_level_that_is_lost_before_the_run_is_through_is_made_again(
    after_the_pyramid, level, verify
):
    work = after_the_pyramid
    delete(work.root / level)
    work.run(verify=verify)
    assert work.now() == work.before
