"""The commands of docs/tutorial.md, in their order, on a volume that is small."""

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from vcmodels.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    vcmodels (.*?)(?: +#.*)?$", PAGE, re.M)
QUICK = {
    "tr_params": {
        "patch_size": [16, 16, 16], "max_epoch": 2, "max_steps_per_epoch": 2,
        "max_val_steps_per_epoch": 1, "num_dataloader_workers": 0, "compile": False,
        "device": "cpu",
    },
    "model_config": {"f_maps": [4, 8], "num_levels": 2, "decoder": "shared"},
}  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each command of the page printed, by its first word."""
    said, folder = {}, tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in COMMANDS:
            words = shlex.split(line)
            if words[0] == "phantom":
                words[words.index("--shape") + 1] = "24,96,56"
                words += ["--chunks", "16,16,16"]
            with redirect_stdout(io.StringIO()) as written:
                assert main(words) == 0, line
            said[words[0]] = written.getvalue()
            if words[0] == "init":
                edit(folder / "first.json")
    return said


def edit(task):
    """Do what the page says with the file that `init` wrote, and leave less to do."""
    values = json.loads(task.read_text())
    (block,) = re.findall(r'^    ("sheet": .*)$', PAGE, re.M)
    values["dataset_config"]["targets"] = json.loads(f"{{{block}}}")
    for section, keys in QUICK.items():
        values[section] = values.get(section, {}) | keys
    task.write_text(json.dumps(values))


def test_the_page_says_what_init_says(said):
    (block,) = re.findall(r"^(    sheet: multiclass.*\n(?:    .*\n)+)", PAGE, re.M)
    assert re.sub("^    ", "", block, flags=re.M) in said["init"]


def test_each_command_names_the_next_and_the_page_has_it(said):
    named = re.findall(r"next: vcmodels (.*)$", "".join(said.values()), re.M)
    assert named == [
        "check first.json, then vcmodels train first.json",
        "infer first.json",
        "evaluate first.json --overlay first.png",
    ]
    assert {"infer first.json", "evaluate first.json --overlay first.png"} <= set(COMMANDS)


def test_the_result_lies_where_the_page_says(said):
    (place,) = re.findall(r"writes `(predictions/\S+)`", PAGE)
    assert re.search(f"^sheet: .*/{place}/sheet$", said["infer"], re.M)
    assert "overlay: first.png" in said["evaluate"]
    (page,) = re.findall(r"The page `(runs/\S+)`", PAGE)
    assert f"{page}, report.json and scores.csv" in said["evaluate"]
    assert "wrote flight.gif: " in said["overlay"]


def test_every_link_of_the_page_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)", PAGE)
    assert "tutorial.png" in links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
