"""Tables of objects as files."""

import csv

import numpy as np
import pytest

from tests.objects.places import CREW, in_memory, random_ids
from vcmodels.errors import OutputError
from vcmodels.objects import written
from vcmodels.objects.table import ObjectArrays, measure_objects
from vcmodels.objects.written import require_table_file, write_table
from vcmodels.postprocess.site import Source


@pytest.fixture
def table(tmp_path):
    ids = random_ids(5)
    values = np.where(ids == ids.max(), np.nan, 0.25)
    measured = ObjectArrays(in_memory(ids), Source("v", in_memory(values), "binary"))
    return measure_objects(measured, tmp_path / "record", CREW)


def test_a_csv_is_read_back_exactly(table, tmp_path):
    path = tmp_path / "objects.csv"
    path.write_text("old")
    write_table(table, path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    columns = table.columns()
    assert list(rows[0]) == list(columns)
    for name, column in columns.items():
        texts = [row[name] for row in rows]
        if name == "touches_border":
            assert texts == ["true" if one else "false" for one in column]
        elif name == "mean_value":
            assert texts[-1] == ""
            assert [float(text) for text in texts[:-1]] == column[:-1].tolist()
        else:
            assert np.array(texts, column.dtype).tolist() == column.tolist()


def test_a_parquet_is_read_back_exactly(table, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(table, tmp_path / "objects.parquet")
    found = parquet.read_table(tmp_path / "objects.parquet")
    columns = table.columns()
    assert found.column_names == list(columns)
    for name, column in columns.items():
        values = found[name].to_numpy()
        assert values.dtype == column.dtype
        np.testing.assert_array_equal(values, column)


def test_files_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(written, "find_spec", lambda _: None)
    with pytest.raises(OutputError, match="pyarrow is not installed; pip install pyarrow, or name"):
        require_table_file("-o", tmp_path / "a.parquet")
    with pytest.raises(OutputError, match=r'-o: found ".*a.txt"; name a .csv or a .parquet'):
        require_table_file("-o", tmp_path / "a.txt")
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(OutputError, match="lies in the Zarr store"):
        require_table_file("-o", tmp_path / "store.zarr" / "a.csv")
