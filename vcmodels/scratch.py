"""What a process leaves outside its results: temporary folders and semaphores.

A process removes its own at its end. One that is killed cannot, so their names say whose they are
and the next process removes those of processes that are gone.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import process, util
from pathlib import Path

_SEMAPHORES = Path("/dev/shm")
"""Where Linux keeps named semaphores, as files `sem.<name>`."""
_NAME = re.compile(r"(?:sem\.)?vcmodels-([0-9a-f]+)-([0-9a-f]+)-.*")
_LONGEST = 80
"""Characters of a folder that a socket of Unix (108 with its name) still fits in."""


def _prefix() -> str:
    """The start of every name of this process.

    It holds the namespace of process ids: a container that shares /tmp or /dev/shm with others sees
    their names, but not whether their processes live.
    """
    return f"vcmodels-{_namespace():x}-{os.getpid():x}-"


def _namespace() -> int:
    with suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a link to no path
    return 0


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, while the context lasts."""
    sweep()
    with tempfile.TemporaryDirectory(prefix=_prefix()) as folder:
        yield Path(folder)


def name_processes() -> None:
    """Give what `multiprocessing` makes from now on names of ours, and sweep those of the killed."""
    sweep()
    config = getattr(process.current_process(), "_config", None)  # CPython has no public way
    if config is None or config.get("tempdir") is not None:
        return
    config["semprefix"] = f"/{_prefix()}"
    if len(f"{tempfile.gettempdir()}/{_prefix()}") > _LONGEST:
        return  # Python's own names are shorter
    folder = tempfile.mkdtemp(prefix=_prefix())
    util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
    config["tempdir"] = folder


def sweep() -> None:
    """Remove the folders and semaphores of processes of ours that are gone."""
    for place in (Path(tempfile.gettempdir()), _SEMAPHORES):
        with suppress(OSError):  # no such folder on other systems
            for path in place.glob("*vcmodels-*"):
                if _is_orphan(path):
                    _remove(path)


def _is_orphan(path: Path) -> bool:
    """Whether its name is of a process of this namespace that is gone, and it is ours to remove."""
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[1], 16) != _namespace() or path.lstat().st_uid != os.getuid():
        return False
    try:
        os.kill(int(match[2], 16), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
