"""What an evaluation leaves in its folder: the report as JSON, as a table and as a page."""

from collections.abc import Sequence
from pathlib import Path

from vcmodels.errors import OutputError
from vcmodels.evaluation.html import require_free
from vcmodels.evaluation.page import write_page
from vcmodels.evaluation.pictures import pair_pictures
from vcmodels.evaluation.report import PAGE, REPORT, TABLE, Report
from vcmodels.evaluation.scoring import ScoredVolume
from vcmodels.evaluation.table import COLUMNS, write_csv
from vcmodels.reporting import Reporter
from vcmodels.volumes.places import refuse_in_store, write_atomic

RECORD = "unfinished"
"""What is measured, until the evaluation is done."""
_BEGIN = {REPORT: '{\n "schema": ', TABLE: ",".join(COLUMNS)}
"""How files of ours begin, whichever version wrote them."""


def require_folder(option: str, folder: Path) -> None:
    """Refuse, before anything is measured, a folder in which a report would replace files of others.

    Args:
        option: that names the folder, for the message.
        folder: may be missing.

    Raises:
        OutputError: it is a file, is in a store, or holds such a file.
    """
    refuse_in_store(option, folder / REPORT)
    if folder.exists() and not folder.is_dir():
        raise OutputError(option, f"{folder} is a file", "name a folder")
    require_free(folder / PAGE)
    for path, begin in ((folder / name, begin.encode()) for name, begin in _BEGIN.items()):
        if path.exists() and not _begins_with(path, begin):
            found = f"{path} is there, and is not of vcmodels"
            raise OutputError(option, found, "name another folder")


def _begins_with(path: Path, begin: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(begin)) == begin


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
        OutputError: the page would replace a file that is none of vcmodels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(report, folder / TABLE)
    write_atomic(folder / REPORT, report.to_text().encode())
    write_page(report, folder / PAGE, pair_pictures(volumes, reporter))
    reporter.say(f"wrote {folder / PAGE}, {REPORT} and {TABLE}")
