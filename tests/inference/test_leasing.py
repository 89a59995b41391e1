"""Who may write to an output in an object store."""

import json
import multiprocessing
import time
import uuid

import pytest

from tests import s3 as support
from vcmodels.errors import OutputError, RunError
from vcmodels.inference import locks
from vcmodels.inference.journal import FOLDER
from vcmodels.inference.locks import Lease, setting_up, working_on
from vcmodels.reporting import Silent
from vcmodels.volumes import place_at
from vcmodels.volumes import remote as remote_module


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "POLL_S", 0.02)
    monkeypatch.setattr(locks, "BEAT_S", 0.1)


@pytest.fixture
def root(s3, quick):
    return place_at(f"s3://{s3.bucket}/out/net.zarr")


def leave_behind(root, name=None, **owner):
    """A lease that nobody renews."""
    owner = {"pid": 7, "host": "far", "machine": "another", "started": "1", "alone": True} | owner
    name = name or f"hold-{uuid.uuid4().hex}"
    (root / FOLDER).write(name, json.dumps(owner).encode())


def test_of_two_that_want_it_alone_the_second_is_refused(root):
    with (
        working_on(root, alone=True, reporter=Silent()) as hold,
        pytest.raises(OutputError, match=r"net\.zarr: in use by pid \d+ on host"),
        working_on(root, alone=True, reporter=Silent()),
    ):
        pass
    assert not (root / FOLDER).names()
    hold.check()


def test_parts_share_it_keep_others_off_and_see_who_is_the_last(root):
    with working_on(root, alone=False, reporter=Silent()) as first:
        assert first.is_sole()
        with working_on(root, alone=False, reporter=Silent()) as second:
            assert not first.is_sole()
            assert not second.is_sole()
            with (
                pytest.raises(OutputError, match="in use"),
                working_on(root, alone=True, reporter=Silent()),
            ):
                pass
        assert first.is_sole()
    with working_on(root, alone=True, reporter=Silent()) as alone:
        assert alone.is_sole()
    assert not (root / FOLDER).names()


def _hold_and_die(root, held):
    with working_on(root, alone=True, reporter=Silent()), setting_up(root, Silent()):
        held.set()
        time.sleep(60)


def test_what_a_killed_process_of_this_machine_held_is_free_at_once(root):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold_and_die, args=(root, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(OutputError, match=f"in use by pid {process.pid}"):
        locks.LeasedHold(root, alone=True, reporter=Silent())
    assert "setup" in (root / FOLDER).names()
    process.kill()
    process.join()
    begun = time.monotonic()
    with working_on(root, alone=True, reporter=Silent()):
        pass
    assert time.monotonic() - begun < 20
    assert not (root / FOLDER).names()


def test_what_a_process_elsewhere_held_is_free_when_it_is_silent_for_long(root, monkeypatch):
    leave_behind(root)
    leave_behind(root, "setup")
    monkeypatch.setattr(locks, "VOID_S", 1.0)
    with working_on(root, alone=True, reporter=Silent()):
        assert len((root / FOLDER).names()) == 1
    assert not (root / FOLDER).names()


@pytest.mark.parametrize("name", ["setup", "hold-x"])
def test_who_waits_for_long_says_once_for_whom(root, monkeypatch, name):
    leave_behind(root, name)
    monkeypatch.setattr(locks, "VOID_S", 3.0)
    monkeypatch.setattr(locks, "REPORT_S", 0.2)
    reporter = Silent()
    with working_on(root, alone=True, reporter=reporter):
        pass
    assert reporter.lines == [f"{root}: waiting for pid 7 on host far"]
    with working_on(root, alone=True, reporter=reporter):
        pass
    assert len(reporter.lines) == 1


def test_a_process_elsewhere_that_gives_a_sign_of_life_keeps_it(root, monkeypatch):
    monkeypatch.setattr(locks, "_machine", lambda: "another")
    lease = Lease(root / FOLDER, "hold-x", alone=True)
    assert lease.take()
    monkeypatch.setattr(locks, "_machine", lambda: "this")
    begun = time.monotonic()
    with (
        pytest.raises(OutputError, match="in use"),
        working_on(root, alone=False, reporter=Silent()),
    ):
        pass
    assert time.monotonic() - begun < locks.VOID_S / 2
    lease.drop()


def test_another_process_with_the_id_of_a_dead_one_is_not_taken_for_it(root):
    owner = {"machine": locks._machine(), "pid": 1, "started": "not the first process"}
    leave_behind(root, **owner)
    with working_on(root, alone=True, reporter=Silent()):
        pass


def check_for_long(hold):
    """For many beats, until it is noticed."""
    for _ in range(6000):
        hold.check()
        time.sleep(0.01)


@pytest.mark.parametrize("taken", ["deleted", "replaced"])
def test_who_lost_it_notices_at_the_next_beat(root, taken):
    with working_on(root, alone=True, reporter=Silent()) as hold:
        (name,) = (root / FOLDER).names()
        hold.check()
        if taken == "deleted":
            (root / FOLDER).delete(name)
        else:
            leave_behind(root, name)
        with pytest.raises(RunError, match=r"no sign of life .* run the same command again"):
            check_for_long(hold)
    assert ((root / FOLDER).names() == {name}) == (taken == "replaced")


def test_who_is_to_be_silent_is_lost_before_others_take_over():
    assert locks.LOST_S < locks.VOID_S


def test_who_cannot_renew_it_takes_it_for_lost_before_others_do(root, s3, monkeypatch):
    """The clock is put on: by 50,000 s in all while beats are renewed, by 40,001 s when none is."""
    monkeypatch.setattr(locks, "LOST_S", 40_000.0)
    ahead, now = [0.0], locks._now
    monkeypatch.setattr(locks, "_now", lambda: now() + ahead[0])
    with working_on(root, alone=True, reporter=Silent()) as hold:
        (name,) = (root / FOLDER).names()

        def beats():
            return json.loads((root / FOLDER).read(name))["beats"]

        for _ in range(2):
            ahead[0] += 25_000
            begun = beats()
            while beats() < begun + 2:  # one may have begun before
                time.sleep(0.01)
            hold.check()
        s3.fail("PUT", f"/{root.location[5:]}/{FOLDER}/{name}", *[503] * 999)
        hold.check()
        ahead[0] += 40_001
        with pytest.raises(RunError, match="no sign of life"):
            check_for_long(hold)


def test_a_lost_answer_does_not_make_a_lease_another_process_s(root, s3):
    path = f"/{root.location[5:]}/{FOLDER}/one"
    s3.fail("PUT", path, "lose", "ok", "lose")
    version = (root / FOLDER).create("one", b"mine")
    assert version
    assert (root / FOLDER).create("one", b"another") is None
    s3.fail("PUT", path, "lose")
    assert (root / FOLDER).replace("one", b"mine again", version)
    assert (root / FOLDER).replace("one", b"late", version) is None
    assert (root / FOLDER).replace("none", b"x", version) is None
    assert (root / FOLDER).read("one") == b"mine again"


def test_a_server_without_conditional_writes_is_refused(root, s3, monkeypatch):
    monkeypatch.setattr(s3, "has_conditions", False)
    with (
        pytest.raises(OutputError, match=r"no conditional writes.*; write to a folder, and copy"),
        working_on(root, alone=True, reporter=Silent()),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "answers"), [("setup", [501]), ("probe", [501]), ("probe", ["ok", "ok", 501])]
)
def test_a_server_that_knows_no_conditional_writes_is_refused_for_that(root, s3, name, answers):
    s3.fail("PUT", f"/{root.location[5:]}/{FOLDER}/{name}", *answers)
    with (
        pytest.raises(OutputError, match=r"no conditional writes.*; write to a folder, and copy"),
        working_on(root, alone=True, reporter=Silent()),
    ):
        pass
    assert not (root / FOLDER).names()


def test_a_server_that_does_not_tell_the_time_is_refused(root, monkeypatch):
    leave_behind(root, "setup")
    send = support._Quiet.send_header

    def send_all_but_the_date(handler, key, value):
        if key.lower() != "date":
            send(handler, key, value)

    monkeypatch.setattr(support._Quiet, "send_header", send_all_but_the_date)
    with (
        pytest.raises(OutputError, match=r"setup has no age \(.* no Date header\); write to a fol"),
        working_on(root, alone=True, reporter=Silent()),
    ):
        pass


def test_the_documentation_states_the_times(request):
    text = (request.config.rootpath / "docs/inference.md").read_text()
    remote = " ".join(text[text.index("## Remote stores") :].split())
    assert remote_module.PAUSES_S == (0.5, 1.0, 2.0, 4.0)
    assert "up to five times, after 0.5, 1, 2 and 4 seconds" in remote
    assert (remote_module.SILENCE_S, locks.VOID_S, locks.LOST_S) == (60, 60, 40)
    for words in ("sends nothing for a minute", "output for a minute", "for 40 seconds"):
        assert words in remote
