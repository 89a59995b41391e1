import pytest
from rich.table import Table

from vcmodels.cli.console import Console, number, write_table


def test_a_table_shows_names_as_they_are_and_cuts_nothing(capsys):
    table = Table("a[bold]b", "c")
    table.add_row("[red]x[/red]:smile:", "0.125")
    table.add_row("y" * 500, "")
    write_table(table, Console())
    lines = capsys.readouterr().out.splitlines()
    assert "a[bold]b" in lines[1]
    assert "[red]x[/red]:smile:" in lines[3]
    assert "y" * 500 in lines[4]
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.123456, {}, "0.1235"),
        (12.36, {"digits": 1}, "12.4"),
        (12.6, {"digits": 0}, "13"),
        (None, {"digits": 1}, ""),
        (None, {"unknown": "-"}, "-"),
        (0.0, {"unknown": "-"}, "0"),
    ],
)
def test_figures_are_short(value, options, text):
    assert number(value, **options) == text
