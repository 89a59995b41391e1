"""A table of objects as a file: CSV, or Parquet with pyarrow."""

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vcmodels.errors import OutputError
from vcmodels.objects.table import ObjectTable
from vcmodels.volumes.places import refuse_in_store, whole_file

ENDINGS = (".csv", ".parquet")


def require_table_file(option: str, path: Path, *, overwrite: bool = False) -> None:
    """Refuse a file that no table can be written to.

    Args:
        option: that names it, for the message.
        path: need not exist.
        overwrite: whether a file may be there.

    Raises:
        OutputError: its ending is neither `.csv` nor `.parquet`, a file or folder is there, it lies
            in a Zarr store, or Parquet is asked for and pyarrow is not installed.
    """
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        raise OutputError(option, f'found "{path}"', "name a .csv or a .parquet")
    refuse_in_store(option, path)
    if path.exists() and not overwrite:
        raise OutputError(option, f"{path} is there already", "name another, or give --overwrite")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        found = f"{path} is to be Parquet, and the package pyarrow is not installed"
        raise OutputError(option, found, "pip install pyarrow, or name a .csv")


def write_table(table: ObjectTable, path: Path) -> None:
    """Write a table, by the ending of the path; a file that is there is replaced in one step.

    CSV has a heading; numbers are written so that they are read back exactly, what is not known is
    empty, and whether the border is touched is `true` or `false`.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".parquet":
            _write_parquet(table.columns(), temporary)
        else:
            _write_csv(table.columns(), temporary)


def _write_csv(columns: dict[str, np.ndarray], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*map(_texts, columns.values()), strict=True))


def _texts(column: np.ndarray) -> list[str]:
    if column.dtype.kind == "b":
        return np.where(column, "true", "false").tolist()
    return ["" if value != value else repr(value) for value in column.tolist()]


def _write_parquet(columns: dict[str, np.ndarray], path: Path) -> None:
    # Late: it takes half a second, and is no dependency.
    import pyarrow as arrow  # pyright: ignore[reportMissingImports]
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    parquet.write_table(arrow.table(columns), path)
