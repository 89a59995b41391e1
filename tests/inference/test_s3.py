"""Predictions from S3 and to S3 (moto's server on this machine): the bytes of a local run."""

import functools
import json
import logging

import numpy as np
import pytest
from torch import nn

from tests import s3 as support
from tests.inference.conftest import METADATA, Workplace
from vcmodels.errors import OutputError, RunError, TaskError
from vcmodels.inference import Part, locks, reproduce
from vcmodels.inference.journal import Journal
from vcmodels.reporting import Silent
from vcmodels.volumes import place_at
from vcmodels.volumes.remote import RemoteError


class Ramp(nn.Module):
    """Depends on the place in the patch."""

    def forward(self, image, targets):
        ramp = np.sin(np.arange(image[0, 0].numel(), dtype=np.float32)).reshape(image[0, 0].shape)
        return {name: (image[:, :1] + image.new_tensor(ramp),) for name in targets}


class Remote(Workplace):
    """A workplace whose output is in a bucket."""

    server: support.Server

    @property
    def root(self):
        return f"{self.server.bucket}/out/net.zarr"

    def task(self, **inference):
        return super().task(**{"output_dir": f"s3://{self.server.bucket}/out"} | inference)

    def hashes(self):
        return self.server.objects(self.root)


def volume(seed=3):
    values = np.random.default_rng(seed).random((24, 10, 11), np.float32)
    values[8:16, :8] = 0
    return values


@pytest.fixture(autouse=True)
def quick_leases(monkeypatch):
    monkeypatch.setattr(locks, "POLL_S", 0.02)


@pytest.fixture
def work(s3, tmp_path):
    made = Remote(tmp_path / "work", volume(), (8, 8, 8), network=Ramp())
    made.server = s3
    return made


def chunks(objects):
    """What is stored without the metadata, which names the place of the input."""
    return {
        name: data
        for name, data in objects.items()
        if name.rpartition("/")[2] not in (*METADATA, "zarr.json")
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Chunks of the local result, by path."""

    @functools.cache
    def run(manner="plain"):
        folder = tmp_path_factory.mktemp("local")
        local = Workplace(folder, volume(), (8, 8, 8), network=Ramp())
        local.run(**MANNERS[manner])
        root = folder / "out" / "net.zarr"
        return chunks(
            {
                path.relative_to(root).as_posix(): path.read_bytes()
                for path in root.rglob("*")
                if path.is_file()
            }
        )

    return run


MANNERS = {
    "plain": {},
    "pyramid": {"pyramid": "auto"},
    "other overlap": {"overlap": 0.5},
    "shards": {
        "output_zarr_format": 3,
        "output_chunks": [4, 4, 4],
        "output_shards": [8, 8, 8],
        "pyramid": 1,
    },
}


@pytest.mark.parametrize("name", ["pyramid", "shards"])
def test_the_result_is_the_local_one_chunk_by_chunk_and_nothing_else_is_left(work, expected, name):
    manner = MANNERS[name]
    report = work.run(memory=1e-3, **manner)
    assert report.is_complete
    assert str(report.outputs["value"]) == f"s3://{work.root}/value"
    found = work.hashes()
    assert chunks(found) == expected(name)
    assert len(chunks(found)) > 10
    assert not [name for name in found if name.startswith(".vcmodels") or "lock" in name]
    again = work.run(**manner)
    assert again.was_complete
    assert work.hashes() == found


def test_each_chunk_is_put_once_and_the_last_words_are_those_of_completion(work):
    work.run(memory=1e-3)
    puts = {path: n for (method, path), n in work.server.asked.items() if method == "PUT"}
    stored = chunks(work.hashes())
    assert {puts[f"/{work.root}/{name}"] for name in stored} == {1}
    attributes = json.loads(work.hashes()[".zattrs"])["vcmodels"]
    assert attributes["complete"] is True
    assert sum(one["chunks"] for one in attributes["stored_chunks"].values()) == len(stored)


def test_input_and_output_in_one_bucket(work, expected):
    work.server.upload(work.store, f"{work.server.bucket}/input.zarr")
    work.run(input_path=f"s3://{work.server.bucket}/input.zarr/raw")
    assert chunks(work.hashes()) == expected()


def test_a_stopped_run_continues_and_predicts_nothing_twice(work, expected):
    wanted = expected()
    whole = work.run(options={"dry_run": True}, memory=1e-3).estimate
    left = iter(range(14))
    first = work.run(memory=1e-3, options={"should_stop": lambda: next(left, None) is None})
    assert not first.is_through
    assert Journal(place_at(f"s3://{work.root}")).done()
    last = work.run(memory=1e-3)
    assert last.is_complete
    assert last.patches < whole.patches
    assert chunks(work.hashes()) == wanted
    assert not [name for name in work.hashes() if name.startswith(".vcmodels")]


def test_parts_in_any_order_give_the_same(work, expected):
    wanted = expected()
    for index in (2, 0, 1):
        report = work.run(options={"part": Part(index, 3)})
    assert report.is_complete
    assert chunks(work.hashes()) == wanted


def test_another_run_is_refused_and_overwriting_deletes_what_is_ours_alone(work, expected):
    wanted = expected("other overlap")
    work.run()
    foreign = f"{work.root.partition('/')[2]}/notes.txt"
    work.server.backend.put_object(work.server.bucket, foreign, b"mine")
    before = work.hashes()
    with pytest.raises(OutputError, match="holds another result: overlap was"):
        work.run(overlap=0.5)
    assert work.hashes() == before
    work.run(overlap=0.5, options={"overwrite": True})
    found = work.hashes()
    assert found.pop("notes.txt") == b"mine"
    assert chunks(found) == wanted


def test_overwriting_ends_when_the_server_keeps_what_it_was_to_delete(work):
    work.run()
    work.server.fail("POST", f"/{work.server.bucket}", *["ignore"] * 9)
    with pytest.raises(
        RemoteError, match=r"\d+ objects cannot be deleted, such as .*net\.zarr/value"
    ):
        work.run(overlap=0.5, options={"overwrite": True})
    work.server.reset()
    attributes = json.loads(work.hashes()[".zattrs"])["vcmodels"]
    assert attributes["complete"] is False


def test_verifying_mends_what_is_damaged_or_missing(work, expected):
    wanted = expected()
    whole = work.run()
    bucket, prefix = work.root.split("/", 1)
    work.server.backend.put_object(bucket, f"{prefix}/value/0/0/0/0", b"noise")
    work.server.backend.delete_object(bucket, f"{prefix}/value/0/2/1/1")
    with pytest.raises(OutputError, match=r"finished, but \d+ chunks are stored"):
        work.run()
    report = work.run(options={"verify": True})
    assert 0 < report.patches < whole.patches
    assert chunks(work.hashes()) == wanted


def test_what_passes_is_tried_again(work, expected):
    wanted = expected()
    root = f"/{work.root}"
    for name in ("value/0/0/0/0", ".vcmodels/manifest.json", "value/0/.zarray"):
        work.server.fail("PUT", f"{root}/{name}", 503, "reset")
    work.server.fail("GET", f"{root}/value/0/2/1/1", 500)
    work.run()
    assert chunks(work.hashes()) == wanted


def test_what_stays_names_the_object_and_the_same_command_continues(work, expected):
    wanted = expected()
    work.server.fail("PUT", f"/{work.root}/value/0/2/1/1", *[500] * 99)
    with pytest.raises(
        RunError, match=r"^s3://.*value/0/2/1/1: cannot be written \(.*500.* 3 times\); check"
    ):
        work.run(memory=1e-3)
    assert Journal(place_at(f"s3://{work.root}")).done()
    work.server.reset()
    assert work.run(memory=1e-3).is_complete
    assert chunks(work.hashes()) == wanted


def test_what_cannot_be_written_is_refused_before_any_patch(work, monkeypatch):
    with pytest.raises(
        OutputError, match=r"s3://nowhere/.* cannot be written \(.*name of the bucket"
    ):
        work.run(output_dir="s3://nowhere/out")
    work.server.fail("PUT", f"/{work.root}/.vcmodels/setup", 403)
    with pytest.raises(OutputError, match=r"cannot be written .*403.*; check the credentials"):
        work.run()
    with pytest.raises(
        TaskError, match=r"output_dir: https://a/out cannot be written to; give a loc"
    ):
        work.run(output_dir="https://a/out")
    work.server.upload(work.store, f"{work.server.bucket}/out/net.zarr")
    with pytest.raises(OutputError, match="share a store"):
        work.run(input_path=f"s3://{work.server.bucket}/out/net.zarr/raw")
    with pytest.raises(OutputError, match="was not written by vcmodels"):
        work.run()


def test_keys_are_in_no_object_and_in_no_line(work, caplog):
    reporter = Silent()
    with caplog.at_level(logging.INFO):
        work.server.upload(work.store, f"{work.server.bucket}/input.zarr")
        work.run(
            input_path=f"s3://{work.server.bucket}/input.zarr/raw", options={"reporter": reporter}
        )
    told = "".join([*reporter.lines, caplog.text]).encode() + b"".join(work.hashes().values())
    assert b"s3://" in told
    assert support.KEY.encode() not in told
    assert support.SECRET.encode() not in told


def test_uploads_that_a_kill_left_are_dropped_and_those_of_others_are_not(work):
    bucket, prefix = work.root.split("/", 1)
    keys = [f"{prefix}/value/0/0/0/0", f"{prefix}/value2/0"]
    for key in keys:
        work.server.backend.create_multipart_upload(
            bucket, key, {}, "STANDARD", [], None, None, None
        )
    work.run()
    left = work.server.backend.buckets[bucket].multiparts.values()
    assert [upload.key_name for upload in left] == keys[1:]


def test_a_result_on_s3_is_made_again_from_its_attributes(work, monkeypatch, tmp_path):
    work.run()
    predictor = work.predictor(work.task())
    monkeypatch.setattr("vcmodels.inference.reproduction.load_predictor", lambda _: predictor)
    found = reproduce(f"s3://{work.root}", tmp_path / "again", reporter=Silent())
    assert (found.is_whole, found.lines) == (True, [])
