"""A file of JSON lines that grows while a run lasts, and never stops it."""

import json
import os
from pathlib import Path
from types import TracebackType

from vcmodels.errors import RefusedError
from vcmodels.reporting import Record


class JsonLines:
    """Appends records to a file, each in one write, so that several processes may share it.

    Args:
        path: the file; what it holds stays.

    Raises:
        RefusedError: it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            found = f"{path} cannot be written ({error.strerror})"
            raise RefusedError(
                "--log-json", found, "name a file in a folder that is there"
            ) from error
        self._is_torn = False
        self._has_complained = False

    def append(self, values: Record) -> str:
        """Add a line; what to tell a person about it, once: the disk is full, say."""
        line = f"{json.dumps(values)}\n".encode()
        if self._is_torn:
            line = b"\n" + line
        try:
            written = os.write(self._handle, line)
        except OSError as error:
            return self._complaint(error.strerror or str(error))
        self._is_torn = written < len(line)
        return self._complaint("the disk is full") if self._is_torn else ""

    def _complaint(self, reason: str) -> str:
        if self._has_complained:
            return ""
        self._has_complained = True
        return f"note: {self.path} loses lines ({reason}); the work goes on"

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._handle)
