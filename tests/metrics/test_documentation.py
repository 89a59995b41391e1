"""`docs/evaluation.md` against the metrics that there are."""

import re
from pathlib import Path

from vcmodels.metrics.base import Metric
from vcmodels.metrics.registry import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
SECTION = re.findall(r"^## Metrics of voxels\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[0]


def test_every_figure_of_voxels_is_explained_with_its_sense_and_there_is_no_other():
    rows = re.findall(r"^\| (`.*?) \| .* \| (more|less|neither) \|$", SECTION, re.M)
    explained = {name: sense for names, sense in rows for name in re.findall(r"`(\w+)`", names)}
    words = {"max": "more", "min": "less", None: "neither"}
    assert explained == {
        name: words[one.better] for name, one in METRICS.items() if isinstance(one, Metric)
    }
