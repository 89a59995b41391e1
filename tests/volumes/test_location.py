import pytest

from vcmodels.errors import VolumeError
from vcmodels.volumes import expand_location, expand_pattern
from vcmodels.volumes.location import join, parent


def test_home_variables_and_relative_paths_expand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DATA", "/big/data set")
    assert expand_location("a/./b/../c.zarr/0/") == f"{tmp_path}/a/c.zarr/0"
    assert expand_location("~/c.zarr") == "/home/someone/c.zarr"
    assert expand_location("$DATA/c.zarr") == "/big/data set/c.zarr"
    assert expand_location("${DATA}_2/ü.zarr") == "/big/data set_2/ü.zarr"
    assert expand_location("/a/~/b") == "/a/~/b"


def test_urls_are_left_alone_but_for_variables(monkeypatch):
    monkeypatch.setenv("BUCKET", "scrolls")
    assert expand_location("s3://b//x/") == "s3://b//x"
    assert expand_location("s3://$BUCKET/x") == "s3://scrolls/x"


@pytest.mark.parametrize("text", ["$UNSET_FOR_SURE/a", "${UNSET_FOR_SURE}", "s3://$UNSET_FOR_SURE"])
def test_an_unset_variable_is_named(text):
    with pytest.raises(VolumeError, match=r"\$UNSET_FOR_SURE is not set; export UNSET_FOR_SURE="):
        expand_location(text)


def test_a_password_in_a_url_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("KEY", "me:secret")
    for text in (
        "https://me:secret@host/a.zarr",
        "https://me:p@secret@host/a.zarr?sig=secret",
        "https://$KEY@host/a.zarr",
        "https://secret@host/a.zarr",
        "s3://:secret@b/x",
        "simplecache::http://me:secret@host/a.zarr",
    ):
        with pytest.raises(VolumeError, match="the URL holds a password") as caught:
            expand_location(text)
        assert "secret" not in str(caught.value)
    for text in ("https://host/a@b:c/x", "abfs://container@account/x", "sftp://me@host:22/x"):
        assert expand_location(text) == text


@pytest.mark.parametrize(
    "query",
    [
        "sig=XyZ&sv=2",
        "sv=2&X-Amz-Signature=XyZ",
        "X-Amz-Security-Token=XyZ",
        "X-Goog-Credential=XyZ",
        "AWSAccessKeyId=XyZ",
        "access_token=XyZ",
        "apikey=XyZ",
        "Key-Pair-Id=a&Key=XyZ",
        "password=XyZ",
        "a=1#access_token=XyZ",
    ],
)
def test_a_key_in_the_query_of_a_url_is_refused_and_not_shown(query):
    with pytest.raises(VolumeError, match="the URL holds a key") as caught:
        expand_location(f"https://host/a.zarr?{query}")
    assert "XyZ" not in str(caught.value)


@pytest.mark.parametrize(
    "query", ["path=/a.zarr", "keyframe=3", "design=2", "bypass=1", "tokens=5", "X-Amz-Date=1"]
)
def test_another_query_is_left_alone(query):
    assert expand_location(f"https://host/get?{query}") == f"https://host/get?{query}"


@pytest.mark.parametrize("text", ["", "  ", "a\0b"])
def test_what_is_no_path_is_refused(text):
    with pytest.raises(VolumeError, match="not a path"):
        expand_location(text)


def test_a_star_stands_for_one_part_and_only_whole_paths_count(tmp_path):
    for place in ("s.zarr/b/raw", "s.zarr/a/raw", "s.zarr/c/other", "s.zarr/.hidden/raw"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "s.zarr" / "zarr.json").touch()
    found = expand_pattern(f"{tmp_path}/s.zarr/*/raw")
    assert found == [(name, f"{tmp_path}/s.zarr/{name}/raw") for name in ("a", "b")]


def test_a_star_may_stand_for_a_piece_of_a_part(tmp_path):
    for name in ("x_2.zarr", "x_10.zarr", "y_1.zarr", "x_.zarr"):
        (tmp_path / name / "0").mkdir(parents=True)
    found = expand_pattern(f"{tmp_path}/x_*.zarr/0")
    assert found == [(stem, f"{tmp_path}/x_{stem}.zarr/0") for stem in ("10", "2")]


def test_a_location_without_a_star_is_itself():
    assert expand_pattern("/a/b.zarr") == [("", "/a/b.zarr")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("/nowhere/*/raw", "nothing matches"),
        ("/a/*/b/*", "more than one"),
        ("s3://a/*/raw", "local paths only"),
    ],
)
def test_patterns_that_cannot_be_expanded_are_refused(pattern, message):
    with pytest.raises(VolumeError, match=message):
        expand_pattern(pattern)


def test_joining_and_parents_keep_urls_whole():
    assert join("s3://b/x.zarr/", "/raw/", "") == "s3://b/x.zarr/raw"
    assert parent("s3://b/x.zarr/raw") == "s3://b/x.zarr"
    assert parent("s3://b") is None
    assert parent("/a") is None
