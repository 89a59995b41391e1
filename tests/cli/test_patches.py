"""The command `patches`: its table and picture."""

import numpy as np
import pytest
from PIL import Image

from vcmodels.cli import main


@pytest.fixture
def path(task_file, sheet_task):
    return str(task_file(sheet_task))


def table(out):
    """{(share, ratio): patches} as printed, and the pair that is marked."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("patches by thresholds"))
    ratios = lines[start + 2].split()
    found, marked = {}, []
    for line in lines[start + 3 :]:
        share, *cells = line.split()
        if len(cells) != len(ratios):
            break
        for ratio, cell in zip(ratios, cells, strict=True):
            found[share, ratio] = int(cell.rstrip("*"))
            marked += [(share, ratio)] if cell.endswith("*") else []
    return found, marked


def test_the_table_says_what_each_pair_of_thresholds_would_give(path, capsys):
    assert main(["patches", path]) == 0
    out = capsys.readouterr().out
    assert "scroll.zarr/ct: labelled with 1\n" in out
    found, marked = table(out)
    assert marked == [("0.1", "0.01")]
    for share, ratio in [("0.5", "0.05"), ("0.9", "0.01")]:
        sets = [
            f"dataset_config.min_bbox_percent={share}",
            f"dataset_config.min_labeled_ratio={ratio}",
        ]
        assert main(["patches", path, "--set", sets[0], "--set", sets[1]]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.endswith(f": {found[share, ratio]} patches")
        assert found[share, ratio] > 0


def test_the_picture_lies_beside_the_cache_or_where_it_is_wanted(path, tmp_path, capsys):
    assert main(["patches", path]) == 0
    assert main(["patches", path, "--picture", str(tmp_path / "deep" / "here.png")]) == 0
    for place in (tmp_path / "run" / "patches.png", tmp_path / "deep" / "here.png"):
        pixels = np.asarray(Image.open(place).convert("RGB"))
        assert (np.ptp(pixels, axis=2) > 60).mean() > 0.02  # coloured places on white
    assert "where they lie:" in capsys.readouterr().out


def test_the_table_is_shown_when_nothing_qualifies(path, capsys):
    assert main(["patches", path, "--set", "dataset_config.min_labeled_ratio=0.99"]) == 2
    printed = capsys.readouterr()
    assert table(printed.out)[1] == [("0.1", "0.99")]
    assert "where they lie:" in printed.out
    assert "min_labeled_ratio: no patch qualifies; the best, at" in printed.err


def test_without_reference_label_there_is_no_table(task_file, sheet_task, capsys):
    del sheet_task["dataset_config"]["volume_paths"][0]["ref_label"]
    assert main(["patches", str(task_file(sheet_task))]) == 0
    assert "by thresholds" not in capsys.readouterr().out


def test_a_cluster_that_is_not_there_is_refused(path, monkeypatch, capsys):
    monkeypatch.setattr("vcmodels.devices.CONNECT_S", 0.3)
    assert main(["patches", path, "--dask", "tcp://127.0.0.1:9"]) == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
