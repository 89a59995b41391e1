"""Whether code that comes with a model may run."""

from dataclasses import dataclass
from pathlib import Path

from vcmodels.errors import CheckpointError


@dataclass(frozen=True)
class Trust:
    """Whether code of packages may run: what `--trust` says."""

    is_given: bool = False

    def require(self, path: Path, code: str) -> str:
        """The line that says what runs.

        Raises:
            CheckpointError: trust is not given.
        """
        if not self.is_given:
            found = f"needs {code}, which is code of the package and would run"
            raise CheckpointError(str(path), found, "read it, then give --trust to run it")
        return f"note: {path}: running {code}, as --trust says"
