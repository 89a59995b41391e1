"""Where a volume is: local paths, URLs, and patterns that stand for many of them.

A location stays a string: a `Path` would turn `s3://b//x` into `s3:/b/x`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vcmodels.errors import VolumeError

# A user without a password is a token over http; elsewhere it may be needed, as in abfs://container@account/x.
_PASSWORD = re.compile(r"(https?://|\w+://(?=[^/@]*:))[^/?#]*@", re.IGNORECASE)
_KEY = re.compile(
    r"[?&#](?:[^=&]*[-_.])?(?:aws|api|access|auth|private|secret|session)*"
    r"(?:key|token|sig|signature|secret|pass|passwd|password|pwd|auth|credentials?)(?:[-_]?id)?=",
    re.IGNORECASE,
)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


_INSIDE = re.compile(r"(?<=[^/])(?::/+|#)(?=.)")


@dataclass(frozen=True)
class Origin:
    """The file, or folder of files, that a volume was imported from."""

    location: str
    """As it was given, expanded."""
    digest: str
    """Changes when the files do, or what is read of them."""


def is_remote(location: str) -> bool:
    """Whether the location is a URL, read through fsspec, rather than a local path."""
    return "://" in location


def join(location: str, *parts: str) -> str:
    """The location of a node inside another; empty parts change nothing."""
    return "/".join([location.rstrip("/"), *(p.strip("/") for p in parts if p.strip("/"))])


def parent(location: str) -> str | None:
    """The location one part up; None at the root of a disk or of a URL's host or bucket."""
    head, slash, tail = location.rstrip("/").rpartition("/")
    if not slash or not tail or not head or head.endswith("/"):
        return None
    return head


def expand_location(text: str) -> str:
    """Expand `~` and `$VAR`, and make a local path absolute from the working directory.

    URLs get their variables expanded and otherwise stay as they are.

    Raises:
        VolumeError: a `$VAR` is not set, a URL holds a password or a key, or the text is empty.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise VolumeError(text, f"${name} is not set", f"export {name}=... and run again")
        return os.environ[name]

    if not text.strip() or "\0" in text:
        raise VolumeError(repr(text), "this is not a path", "give a path or a URL")
    expanded = _VARIABLE.sub(value, text)
    if is_remote(expanded):
        refuse_secrets(expanded)
        return expanded.rstrip("/")
    return os.path.normpath(Path.cwd() / Path(expanded).expanduser())


def refuse_secrets(url: str) -> None:
    """Refuse a URL that holds what nobody else may know: it would be written into results.

    Raises:
        VolumeError: it has a password (over http, a user), or a key behind its ?; none is shown.
    """
    shown = _PASSWORD.sub(r"\1...@", url)
    if shown != url:
        remedy = "give it through the driver's environment: locations are written into results"
        raise VolumeError(_QUERY.sub("", shown), "the URL holds a password", remedy)
    if _KEY.search(url):
        remedy = "give it through the driver's configuration: locations are written into results"
        raise VolumeError(_QUERY.sub("", url), "the URL holds a key behind its ?", remedy)


def split_inside(location: str) -> tuple[str, str]:
    """A local file and what is chosen of it: `a.h5:/raw`, `a.h5/raw`, `a.tif#1`; "" where nothing is.

    What exists by the whole name is that.
    """
    # Unlike Path.exists, this is false, and no error, for a name that is too long.
    if is_remote(location) or os.path.exists(location):  # noqa: PTH110
        return location, ""
    for folder in Path(location).parents:
        if os.path.isfile(folder):  # noqa: PTH113
            return str(folder), location[len(str(folder)) + 1 :]
    for match in (found := list(_INSIDE.finditer(location))):
        if os.path.exists(location[: match.start()]) or match is found[-1]:  # noqa: PTH110
            return location[: match.start()], location[match.end() :]
    return location, ""


def expand_pattern(location: str) -> list[tuple[str, str]]:
    """All local locations that a pattern with one `*` stands for.

    The `*` stands for (a piece of) one path part: `store.zarr/*/raw`, `folder/*.zarr/0`,
    `scans/*.nii.gz`, `scans/*.h5:/raw`. Only matches for which the whole path exists are returned;
    files only where the pattern says how they end. Without a `*`, the location itself with an empty
    stem.

    Args:
        location: an expanded location, as from `expand_location`.

    Returns:
        (what the `*` matched, location), sorted by the first.

    Raises:
        VolumeError: more than one `*`, a `*` in a URL, or nothing matches.
    """
    if "*" not in location:
        return [("", location)]
    if is_remote(location):
        raise VolumeError(location, "'*' works for local paths only", "list the URLs one by one")
    if location.count("*") > 1:
        raise VolumeError(location, "more than one '*'", "use a single '*' for one path part")
    outside, _ = split_inside(location)
    before, after = outside.split("*") if "*" in outside else location.split("*")
    inside = location[len(before) + 1 + len(after) :]
    folder, prefix = os.path.split(before)
    suffix, _, rest = after.partition("/")
    stems = _matching_stems(Path(folder), prefix, suffix, takes_files="." in suffix and not rest)
    found = [(stem, f"{before}{stem}{after}") for stem in sorted(stems)]
    found = [(stem, place + inside) for stem, place in found if not rest or Path(place).exists()]
    if not found:
        raise VolumeError(location, "nothing matches the '*'", f"look what is in {folder or '.'}")
    return found


def _matching_stems(folder: Path, prefix: str, suffix: str, *, takes_files: bool) -> list[str]:
    """What `*` stands for in `prefix*suffix` among the visible names of a folder."""
    if not folder.is_dir():
        return []
    least = len(prefix) + len(suffix) + 1
    return [
        name[len(prefix) : len(name) - len(suffix)]
        for name in (entry.name for entry in folder.iterdir() if takes_files or entry.is_dir())
        if len(name) >= least
        and name.startswith(prefix)
        and name.endswith(suffix)
        and not name.startswith(".")
    ]
