"""`docs/augmentation.md` names every transform with its probability, and which are the default."""

import json
import re
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter

from vcmodels.augment import DEFAULT_AUGMENTATIONS, AnyAugmentation

LIST = TypeAdapter(list[AnyAugmentation])
PAGE = Path(__file__).parents[2] / "docs" / "augmentation.md"


def test_the_table_has_a_row_for_every_transform():
    rows = re.findall(
        r"^\| (●?) ?\| `(\w+)` \| ([\d.]+) \| [^|]+ \| ([^|]+) \|$", PAGE.read_text(), re.M
    )
    kinds = {
        kind.model_fields["name"].default: kind for kind in get_args(get_args(AnyAugmentation)[0])
    }
    assert [name for _, name, _, _ in rows] == list(kinds)
    assert {name for mark, name, _, _ in rows if mark} == {a.name for a in DEFAULT_AUGMENTATIONS}
    for _, name, p, parameters in rows:
        assert float(p) == kinds[name].model_fields["p"].default, name
        named = re.findall(r"`(\w+)`", parameters)
        fields = kinds[name].model_fields.keys() - {"name", "p", "per_channel"}
        assert set(named) == fields, name


def test_the_lists_of_the_page_are_valid():
    blocks = re.findall(r"^```json\n(.+?)^```", PAGE.read_text(), re.M | re.S)
    names = [
        [a.name for a in LIST.validate_json(json.dumps(json.loads(f"{{{b}}}")["augment"]))]
        for b in blocks
    ]
    assert [len(listed) for listed in names] == [5, 2]
