"""The page on recipes says what the program does."""

import json
import re
from pathlib import Path

from vcmodels.config.train_params import RECIPES, TrainingParams

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def test_the_table_of_recipes_is_that_of_the_program():
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("|") and not line.startswith("| ---")
    ]
    assert [name.split("`")[0] for name in rows[0][1:]] == list(RECIPES)
    assert {row[0]: row[1:] for row in rows[1:]} == {
        key: [str(recipe[key]) for recipe in RECIPES.values()] for key in RECIPES["sgd_poly"]
    }


def test_its_examples_are_valid():
    examples = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    assert len(examples) == 4
    for example in examples:
        given = {"model_name": "a"} | json.loads("{" + example + "}")
        TrainingParams.model_validate(given, strict=False)
