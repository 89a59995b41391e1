"""Errors that a user can fix; the command line prints them as one line, without a traceback.

A broken assumption of ours is an `assert` or a crash, never one of these.
"""


class VcmodelsError(Exception):
    """Base of the errors that are shown as `error: <subject>: <found>; <remedy>`.

    Args:
        subject: the dotted key or the path that the error is about.
        found: what was found there, with the offending value.
        remedy: what to do about it.
    """

    exit_code = 1
    is_told = False
    """Whether another process of the same job reports it."""

    def __init__(self, subject: str, found: str, remedy: str = "") -> None:
        self.subject, self.found, self.remedy = subject, found, remedy
        super().__init__(f"{subject}: {found}" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Pickle by the three parts, so that an error crosses a process border whole."""
        return type(self), (self.subject, self.found, self.remedy)


class RefusedError(VcmodelsError):
    """Refused before any work: nothing was written (exit code 2)."""

    exit_code = 2


class TaskError(RefusedError):
    """A task file, or a key in it, is not valid."""


class VolumeError(RefusedError):
    """A volume cannot be opened or does not fit the task."""


class CheckpointError(RefusedError):
    """A checkpoint is missing, damaged, unsafe or of another network."""


class OutputError(RefusedError):
    """An output exists already, is in use, or cannot be written."""


class RunError(VcmodelsError):
    """A failure while running; what was finished is kept and the same command resumes (exit 1)."""


class FaultError(ValueError):
    """What is wrong with one value of a task file; whoever knows its key makes a `TaskError` of it.

    A `ValueError`, because pydantic collects those that a validator raises.

    Args:
        found: what was found, with the offending value.
        remedy: what to do about it.
    """

    def __init__(self, found: str, remedy: str) -> None:
        self.found, self.remedy = found, remedy
        super().__init__(f"{found}; {remedy}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Pickle by the two parts, as the errors above."""
        return type(self), (self.found, self.remedy)
