"""The documented layers are those that are checked."""

import tomllib


def test_the_documented_layers_are_those_of_the_import_contract(pytestconfig):
    project = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    block = (pytestconfig.rootpath / "docs" / "design.md").read_text().split("```")[1]
    _doors, *rows = block.strip().splitlines()
    assert [row.partition("  ")[0] for row in rows] == layers
