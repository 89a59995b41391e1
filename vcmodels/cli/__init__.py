"""The command line. `main` is light: it is there before anything heavy is imported."""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from vcmodels.errors import RefusedError, VcmodelsError
from vcmodels.reporting import STOP_SIGNALS, is_follower, is_told_on_this_host


class Session:
    """What one call of the command line knows."""

    def __init__(self, program: str, arguments: Sequence[str] = ()) -> None:
        self.program = program
        self.debug = False
        self.is_starting = True
        self._is_quiet = "--quiet" in arguments or is_follower()
        self._status = ""
        """What stands on the last line of the terminal until something else is to be said."""

    def show_importing(self, arguments: Sequence[str]) -> None:
        """Show on a terminal that a command is coming: importing takes seconds."""
        if sys.stderr.isatty() and not self._is_quiet and len(arguments) > 1:
            self._status = f"{arguments[0]}: importing ..."
            sys.stderr.write(self._status)
            sys.stderr.flush()

    def clear(self) -> None:
        """Remove that line."""
        if self._status:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._status = ""

    def begin(self) -> None:
        """All is imported: from now on a signal unwinds the stack, and garbage is collected."""
        self.is_starting = False
        self.clear()
        if not gc.isenabled():
            gc.freeze()  # what is imported stays
            gc.enable()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Leave on a signal with 128 + its number.

        An exception that is raised while a C extension is imported may come out as another one;
        nothing has been done by then, so the process just ends.
        """
        del frame
        if not self._is_quiet:
            start = "\r\x1b[K" if self._status else ""
            said = "before anything was done" if self.is_starting else "by a signal"
            with suppress(OSError):
                os.write(2, f"{start}stopped {said}\n".encode())  # safe wherever it interrupts
        if self.is_starting:
            os._exit(128 + number)
        raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None, program: str = "vcmodels") -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; those of this process when None.
        program: what usage messages call the program.

    Returns:
        The exit code: 0 done, 2 refused before any work, 1 a failure while running (the same
        command continues), 130 or 143 stopped by a signal.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    session = Session(program, words)
    if arguments is None:  # the process is ours: looking for garbage in imports takes 0.4 s
        gc.disable()
    for number in STOP_SIGNALS:
        signal.signal(number, session.stop)
    _secure_streams()
    if "--help" not in words:
        session.show_importing(words)
    try:
        os.getcwd()  # noqa: PTH109 -- only asked whether it is there
        from vcmodels.cli.app import run  # late: typer takes a fifth of a second

        return run(words, session)
    except VcmodelsError as error:
        if error.is_told or (isinstance(error, RefusedError) and is_told_on_this_host()):
            return error.exit_code
        return _fail(session, str(error), error.exit_code)
    except FileNotFoundError as error:
        if error.filename is None:
            return _fail(session, "the working directory: is gone; cd to one that is there", 2)
        return _fail(session, f"{error.filename}: {error.strerror}; check the path", 1)
    except OSError as error:
        place = error.filename or "input or output"
        remedy = "fix that and run the same command again"
        return _fail(session, f"{place}: {error.strerror or error}; {remedy}", 1)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        remedy = "free some, or use a smaller batch or patch"
        return _fail(session, f"memory: there is not enough; {remedy}", 1)


def _lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory was too small, that of a GPU included."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from vcmodels.devices import is_out_of_memory  # late: without torch nothing of it can fail

    return is_out_of_memory(error)


def _fail(session: Session, message: str, code: int) -> int:
    """Show the exception that is being handled as one line, or whole with --debug."""
    if session.debug:
        raise  # called while an exception is handled
    session.clear()
    sys.stderr.write(f"error: {' '.join(message.splitlines())}\n")
    return code


def _secure_streams() -> None:
    """Make writing to stdout and stderr safe: closed ones lead nowhere, no text is unprintable."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened gets this number, and our output
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
