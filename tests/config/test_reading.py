import pytest

from vcmodels.config import parse_task
from vcmodels.errors import TaskError

ENTRY = "dataset_config.volume_paths.0"


def parsed(inference=None, **entry):
    task = {
        "tr_params": {"model_name": "m"},
        "inference_params": inference or {},
        "dataset_config": {
            "volume_paths": [{"input": "a.zarr", "mask": "b.zarr", **entry}],
            "targets": {"mask": {"kind": "binary"}},
        },
    }
    return parse_task(task, "test")[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"axes": "zy"}, f"{ENTRY}.axes: found \"zy\"; give a letter for each stored axis"),
        ({"axes": "zyz"}, f'{ENTRY}.axes: "zyz" does not hold z, y and x'),
        ({"axes": "ZYX"}, f'{ENTRY}.axes: found "ZYX"'),
        ({"axes": {"msk": "zyx"}}, rf'{ENTRY}.axes: "msk" is no array .* "input", "mask"'),
        ({"axes": "zyx", "channel_axis": "last"}, f"{ENTRY}.channel_axis: is given, and axes says"),
        ({"channels": []}, f"{ENTRY}.channels: found"),
        ({"channels": [0, 0]}, rf"{ENTRY}.channels: \[0, 0\] names a channel twice"),
        ({"channels": [-1]}, f"{ENTRY}.channels.0: found -1"),
        ({"channels": 0}, f"{ENTRY}.channels: found 0"),
        ({"channels": [[0], [1]]}, f"{ENTRY}.channels: has 2 lists, there are 1 inputs"),
        ({"index": {"z": 0}}, f"{ENTRY}.index: z are not axes"),
        ({"index": {"t": 0, "time": 1}}, f"{ENTRY}.index: t, time are not axes, each once"),
        ({"index": {"t": -1}}, f"{ENTRY}.index.t: found -1"),
        ({"index": {"c": {"input": 0}}}, rf'{ENTRY}.index.c: "input" is no array .* "mask"'),
        ({"spacing": [1, 0, 1]}, f"{ENTRY}.spacing.1: found 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_its_key(entry, message):
    with pytest.raises(TaskError, match=message):
        parsed(**entry)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"index": {"c": 0}}, "index.c: there is no label or mask .* chosen with \"channels\""),
        ({"axes": {"mask": "zyx"}}, 'axes: "mask" is no array of this volume; name "input"'),
        ({"input_path": ["a", "b"], "channels": [[0]]}, "has 1 lists, there are 2 inputs"),
    ],
    ids=str,
)  # fmt: skip
def test_the_input_of_an_inference_has_the_same_rules(params, message):
    with pytest.raises(TaskError, match=f"inference_params.*{message}"):
        parsed(params)


def test_keys_survive_a_round_trip_and_axes_are_known_by_their_usual_names():
    task = parsed(
        axes={"input": "tczyx"}, channels=[2, 0], index={"Time": 5, "c": {"mask": 1}}
    )  # fmt: skip
    (entry,) = task.dataset_config.volume_paths
    assert entry.index == {"t": 5, "c": {"mask": 1}}
    assert parse_task(task.to_json(), "again")[0] == task
