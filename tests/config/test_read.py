import json

import pytest

from vcmodels.config import load_task, read
from vcmodels.config.read import BadNumber, checked, parse_json, parse_yaml
from vcmodels.errors import TaskError


@pytest.fixture
def write(tmp_path):
    def write(content, name="task.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"none\.json: no such file; check the path"):
        load_task(tmp_path / "none.json")


def test_a_path_with_nul_is_refused():
    with pytest.raises(TaskError, match="cannot be read"):
        load_task("a\0b")


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_said_to_be_empty(write, content):
    with pytest.raises(TaskError, match="the file is empty"):
        load_task(write(content))


@pytest.mark.parametrize("content", ["[]", "1", '"a"', "null"])
def test_the_task_is_an_object(write, content):
    with pytest.raises(TaskError, match="this is no object"):
        load_task(write(content))


def test_byte_order_mark_and_windows_line_ends_are_accepted(write, good):
    plain = json.dumps(good, indent=1)
    expected = load_task(write(plain)).task
    assert load_task(write("\ufeff" + plain)).task == expected
    assert load_task(write(plain.replace("\n", "\r\n"))).task == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused(write, good, encoding):
    with pytest.raises(TaskError, match="save it as UTF-8"):
        load_task(write(json.dumps(good).encode(encoding)))


def test_invalid_utf8_is_refused_with_its_line(write):
    with pytest.raises(TaskError, match="byte 0xe9 in line 2 is not UTF-8; save the file as UTF-8"):
        load_task(write('{\n"tr_params": "Andr\xe9"}'.encode("latin-1")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,}', r"line 1, column 9: .*; remove the comma before the closing bracket"),
        ('{"a": [1, 2,]}', r"line 1, column 13: .*; remove the comma"),
        ("{\n  // why\n}", r"line 2, column 3: .*no comments"),
        ("{'a': 1}", r"line 1, column 2: .*double quotes"),
        ('{"a": 1\n "b": 2}', r"line 2, column 2: .*comma missing"),
        ('{"a": {', r"line 1, column 8: .*ends too early"),
    ],
)
def test_a_syntax_error_has_place_and_remedy(text, message):
    with pytest.raises(TaskError, match=message):
        parse_json(text, "t.json")


def test_a_file_cut_at_any_byte_is_refused(write, good):
    text = json.dumps(good, indent=1).encode()
    for end in range(0, len(text) - 1, 7):
        with pytest.raises(TaskError, match=r"^[^\n]+$"):
            load_task(write(text[:end]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 1}', "^a: stands twice, in line 1;"),
        ('{"a": {"b": 1,\n"c": 2,\n"b": 3}}', r"^a\.b: stands twice, in lines 1 and 3;"),
        ('{"a": [1, {"b": "\\"}{"},\n {"c": 1,\n "c": 2}]}', r"^a\.2\.c: .* lines 2 and 3;"),
        ('{"a": {"b": 1}, "c": {"b": 2}, "c":\n3}', "^c: stands twice, in line 1;"),
        ('{"\\u0061": 1, "a": 2}', "^a: stands twice"),
    ],
)
@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_a_duplicate_key_is_named_with_both_lines(parse, text, message):
    with pytest.raises(TaskError, match=message):
        parse(text, "t")


def test_equal_keys_of_different_objects_are_fine():
    text = '{"a": [{"b": 1}, {"b": "b"}], "b": {"a": "a", "b": ["a", "a"]}}'
    assert parse_json(text, "t") == parse_yaml(text, "t") == json.loads(text)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e400", "9" * 21, "9" * 5000])
def test_impossible_numbers_are_named_by_their_key(write, text):
    path = write('{"tr_params": {"batch_size": [1, ' + text + "]}}")
    with pytest.raises(TaskError, match=r"^tr_params\.batch_size\.1: found .{1,80}; give a finite"):
        load_task(path)


def test_deep_nesting_is_refused_in_both_formats(write):
    depth = 100_000
    with pytest.raises(TaskError, match="line 1: nested deeper than 32"):
        load_task(write("[" * depth + "]" * depth))
    with pytest.raises(TaskError, match="nested"):
        load_task(write("- " * depth, "t.yaml"))


def test_brackets_in_text_are_no_nesting():
    text = '{"a": "' + "[" * 100 + '\\""}'
    assert parse_json(text, "t") == {"a": "[" * 100 + '"'}


def test_huge_files_are_refused_before_they_are_parsed(write):
    with pytest.raises(TaskError, match="larger than 16 MiB"):
        load_task(write(b" " * (16 * 2**20 + 1)))


def test_absurdly_many_values_are_refused(write, monkeypatch):
    monkeypatch.setattr(read, "MAX_VALUES", 1000)
    targets = ",".join(f'"a{i}":0' for i in range(1001))
    with pytest.raises(TaskError, match="too many values"):
        load_task(write('{"targets": {' + targets + "}}"))


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\u0000b"', '"a\\nb"'])
def test_odd_characters_are_refused(write, text):
    with pytest.raises(TaskError, match=r"^tr_params\.model_name: holds the character U\+"):
        load_task(write('{"tr_params": {"model_name": ' + text + "}}"))


def test_whole_numbers_go_up_to_the_largest_that_a_label_can_hold():
    assert checked(parse_yaml("a: 18446744073709551615", "t")) == {"a": 2**64 - 1}
    with pytest.raises(TaskError, match=r"^a: found 100000000000000000000; give a finite number"):
        checked(parse_yaml("a: 100000000000000000000", "t"))


def test_yaml_scalars_are_those_of_json():
    text = "a: 1e-3\nb: off\nc:\nd: [1, -2.5, .5, 2020-01-01, '1', 0x10, true, null, yes]\n"
    assert parse_yaml(text, "t") == {
        "a": 1e-3,
        "b": "off",
        "c": None,
        "d": [1, -2.5, 0.5, "2020-01-01", "1", "0x10", True, None, "yes"],
    }
    assert parse_yaml("a: [.nan, -.inf, 1e400]", "t") == {
        "a": [BadNumber(".nan"), BadNumber("-.inf"), BadNumber("1e400")]
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1, column 5: .*; correct the YAML"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag .* is not taken"),
        ("a: !!int x", ""),
        ("1: 2", "line 1: a key that is not text"),
        ("? [a]\n: b", "line 1: a key that is not text"),
        ("a: &x [1]\nb: [*x, *x]", r"line 1: an alias \(\*name\)"),
        ("a: &x [*x]", "an alias"),
        ("a: \0", "not YAML"),
        ("a: 1\n---\nb: 2", "."),
    ],
)
def test_yaml_that_is_no_plain_data_is_refused(text, message):
    if not message:
        assert parse_yaml(text, "t") == {"a": BadNumber("x")}
        return
    with pytest.raises(TaskError, match=message):
        parse_yaml(text, "t")


def test_python_values_that_are_no_json_are_refused():
    with pytest.raises(TaskError, match=r"^a\.0: found nan"):
        checked({"a": [float("nan")]})
    with pytest.raises(TaskError, match=r"^a: found "):
        checked({"a": object()})
