"""What an evaluation leaves in its folder: the report as JSON, as a table and as a page."""

from collections.abc import Sequence
from pathlib import Path

from vcmodels.errors import OutputError
from vcmodels.evaluation.html import require_free
from vcmodels.evaluation.page import write_page
from vcmodels.evaluation.pictures import pair_pictures
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import ScoredVolume
from vcmodels.evaluation.table import COLUMNS, write_csv
from vcmodels.reporting import Reporter
from vcmodels.volumes.places import write_atomic

REPORT, TABLE, PAGE, RECORD = "report.json", "scores.csv", "report.html", "unfinished"
"""The last one until the evaluation is done."""


def require_free_folder(folder: Path) -> None:
    """Refuse a folder in which a report would replace what vcmodels did not write.

    Raises:
        OutputError: naming the file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(str(folder), "is a file", "name a folder")
    require_free(folder / PAGE)
    for path, start in ((folder / TABLE, ",".join(COLUMNS)), (folder / REPORT, '{\n "schema": ')):
        if path.exists() and not path.read_bytes().startswith(start.encode()):
            found = "is there, and was not written by vcmodels evaluate"
            raise OutputError(str(path), found, "name another folder")


def write_report(
    report: Report, folder: Path, volumes: Sequence[ScoredVolume], reporter: Reporter
) -> None:
    """Keep a report in a folder; an earlier one is replaced.

    Args:
        report: of some volumes.
        folder: is made if it is not there.
        volumes: what was scored, from which the pictures of the page are drawn.
        reporter: gets what was written.

    Raises:
        OSError: something cannot be written.
        OutputError: it would replace a file that is none of vcmodels; nothing is written then.
    """
    require_free_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(report, folder / TABLE)
    write_atomic(folder / REPORT, report.to_text().encode())
    write_page(report, folder / PAGE, pair_pictures(volumes, reporter))
    reporter.say(f"wrote {folder / PAGE}, {REPORT} and {TABLE}")
