"""What stands at the output: whose it is, whether it is whole, and what of it is kept.

A result is looked at before anything is said of it: its metadata is read, and the stored chunks are
compared with what was noted when it was finished, from listings and the first bytes of files. With
`verify` every chunk is decoded, and metadata that is not what it should be is written again.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box, triple, units_touching
from vcmodels.inference.journal import FOLDER, Journal, Manifest, differences, digest, of_today
from vcmodels.inference.network import OutputSpec
from vcmodels.inference.output import METADATA, Layout, level_key
from vcmodels.inference.writing import Output
from vcmodels.reporting import Reporter, list_some
from vcmodels.results import (
    KEY,
    VERIFY,
    census,
    damaged,
    discard_output,
    is_complete,
    is_of_step,
    our_attributes,
    require_stored,
    require_writable,
    stored_before,
)
from vcmodels.volumes import (
    OME,
    ChunkError,
    Place,
    Volume,
    is_array,
    open_volume,
    place_at,
    read_members,
    set_group_attributes,
)

OutputState = Literal["new", "resume", "complete"]


def claim(
    layout: Layout,
    targets: Mapping[str, OutputSpec],
    manifest: Manifest,
    *,
    overwrite: bool = False,
    verify: bool = False,
    is_repaired: Callable[[Journal], bool] | None = None,
) -> OutputState:
    """Find out what stands at the output, and refuse what is not this very run's.

    Args:
        layout: of the output, whose group is held by this process.
        targets: by name.
        manifest: what determines the result.
        overwrite: delete an earlier result of ours first.
        verify: take nothing for complete, and go on where metadata is damaged.
        is_repaired: asked where only the input differs: whether the run goes on all the same.

    Raises:
        OutputError: another run's result, something that is not ours, or a result that is damaged;
            nothing is changed.
    """
    root = layout.root
    require_writable(root)
    names = root.names()
    if names <= {FOLDER} and (overwrite or verify or not names):
        return "new"  # nothing is stored yet
    before, noted, damage = _look(root, manifest)
    if before is None:
        if damage is None and names <= {FOLDER}:
            return "new"
        place = damage.subject if damage else str(root)
        found = damage.found if damage else "exists and was not written by vcmodels"
        raise OutputError(place, found, "choose another output_dir or name, or move it away")
    if overwrite:
        _delete(root, before, noted)
        return "new"
    if damage is not None and not verify:
        raise damage
    if is_complete(noted):  # all of its input was read
        is_repaired = None
    _require_same(root, before, manifest, is_repaired or _never)
    if verify:
        return "resume"
    for line in wrong_metadata(layout, targets, noted):
        raise damaged(root, line)
    if not is_complete(noted):
        Journal(root).done()  # is it damaged?
        return "resume"
    for key in layout.keys(targets):
        require_stored(root, key, noted)
    Journal(root).remove()
    return "complete"


def _never(_journal: Journal) -> bool:
    return False


def noted_before(root: Place) -> dict[str, Any]:
    """What the group of a result says; empty where that is damaged."""
    try:
        return our_attributes(root)
    except OutputError:
        return {}


def _look(
    root: Place, manifest: Manifest
) -> tuple[Manifest | None, dict[str, Any], OutputError | None]:
    """What a result says it is made from, what its group says, and what of these is damaged.

    Where the group has lost its attributes, those of the targets still say what it belongs to.
    """
    started, noted, damage = None, dict[str, Any](), None
    try:
        noted = our_attributes(root)
    except OutputError as error:
        damage = error
    try:
        started = Journal(root).manifest()
    except OutputError as error:
        damage = damage or error
    # What a kill left of the journal of a finished result says nothing of it.
    before = noted.get("manifest") if started is None or is_complete(noted) else started
    if isinstance(before, dict) and isinstance(before.get("targets"), dict):
        return before, noted, damage
    before = _from_targets(root, manifest)
    if before is not None and damage is None:
        damage = OutputError(str(root), "has lost its attributes", VERIFY)
    return before, {}, damage


def _from_targets(root: Place, manifest: Manifest) -> Manifest | None:
    """What the groups of the targets say that the result is made from; None where they say nothing."""
    ours: dict[str, Any] = {}
    for name in manifest["targets"]:
        try:
            notes = our_attributes(root / name)
        except OutputError:
            continue
        if notes.get("manifest_sha256") == digest(manifest):
            return manifest
        if isinstance(notes.get("provenance"), dict):  # an older result has all of it there
            return {key: value for key, value in notes["provenance"].items() if key in manifest}
        if "manifest_sha256" in notes:
            ours[name] = {}
    return {"targets": ours} if ours else None


def _require_same(
    root: Place, before: Manifest, manifest: Manifest, is_repaired: Callable[[Journal], bool]
) -> None:
    """Refuse another run's result.

    Raises:
        OutputError: naming what differs.
    """
    changed = differences(of_today(before), manifest)
    if not changed:
        return
    is_input = all(line.startswith("input_content ") for line in changed)
    if is_input and is_repaired(Journal(root)):
        return
    what = "its chunks with their sizes and times (cp -p)" if is_input else "those values"
    raise OutputError(
        str(root),
        f"holds another result: {list_some(changed, 6, between='; ')}",
        f"restore {what}, choose another output_dir, or run with --overwrite",
    )


def wrong_metadata(
    layout: Layout, targets: Mapping[str, OutputSpec], noted: Mapping[str, Any]
) -> Iterator[str]:
    """What of the metadata of groups and arrays is damaged or missing, in a line each.

    Args:
        layout: of the output.
        targets: by name.
        noted: what the group says; of a result that is not finished, parts may be missing.
    """
    root, is_finished = layout.root, is_complete(noted)
    # Older results have no list of their images.
    listed = [OME] if "provenance" in noted and OME not in targets else []
    for place in (root, *(root / name for name in (*targets, *listed))):
        yield from _wrong_group(place, is_finished=is_finished)
    # Post-processing lists its outputs too.
    if is_finished and listed and not set(targets) <= set(read_members(str(root)) or ()):
        yield f"{root / OME} does not list {', '.join(targets)}"
    for name, target in targets.items():
        for level in range(len(layout.factors)):
            place, files = layout.location(name, level), layout.metadata(target, level)
            if is_finished or is_array(place):
                for file in _wrong_files(place, files):
                    yield f"{place / file} is damaged or missing"
    if is_finished:
        for name in targets:
            if not is_complete(our_attributes(root / name)):
                yield f"{root / name} has lost its attributes"


def _wrong_group(place: Place, *, is_finished: bool) -> Iterator[str]:
    try:
        our_attributes(place)
    except OutputError as error:
        yield f"{place}/{error.found}"
        return
    if is_finished and not (place.holds("zarr.json") or place.holds(".zgroup")):
        yield f"{place} is no zarr group any more"


def _wrong_files(
    place: Place, files: Mapping[str, bytes], *, exactly: bool = False
) -> Iterator[str]:
    """Those of an array's files that are not what they should be; attributes may be added.

    Args:
        place: of the array.
        files: its metadata.
        exactly: also a `.zarray` that says more, as older ones do of checksums.
    """
    for file, wanted in files.items():
        try:
            found = json.loads(place.read(file))
        except (FileNotFoundError, ValueError, RecursionError):
            yield file
            continue
        right = json.loads(wanted)
        if not _holds(found, right) or (exactly and file == ".zarray" and found != right):
            yield file


def _holds(found: object, wanted: object) -> bool:
    """Whether a JSON value has all that is wanted of it."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return all(key in found and _holds(found[key], one) for key, one in wanted.items())
    return found == wanted


def restore_metadata(layout: Layout, targets: Mapping[str, OutputSpec], reporter: Reporter) -> None:
    """Write the metadata of arrays again where it is not what it should be; chunks stay.

    That of groups is deleted where it is damaged: whoever describes them next makes them again.
    """
    for place in (layout.root, *(layout.root / name for name in (*targets, OME))):
        try:
            our_attributes(place)
        except OutputError as error:
            reporter.say(f"made again: {place}/{error.found}")
            place.delete(*METADATA)
    for name, target in targets.items():
        for level in range(len(layout.factors)):
            place, files = layout.location(name, level), layout.metadata(target, level)
            place.prune_below()  # of folders in the place of chunks
            for file in list(_wrong_files(place, files, exactly=True)):
                reporter.say(f"made again: {place / file}")
                place.write(file, files[file])


def find_intact(
    layout: Layout,
    outputs: Mapping[str, Output],
    noted: Mapping[str, Any],
    reporter: Reporter,
) -> dict[str, list[Box]]:
    """The blocks that are stored and can be decoded, by array as the journal names them.

    Those that cannot are reported, each in a line, and deleted. Where all can, but they are not
    those that were noted, nothing shows which ones were changed, and all of the array are deleted.

    Args:
        layout: of the output.
        outputs: the finest level of each target.
        noted: what the group said before.
        reporter: told what is damaged.
    """
    found: dict[str, list[Box]] = {}
    for name, output in outputs.items():
        for level in range(len(layout.factors)):
            if is_array(layout.location(name, level)):
                key = level_key(name, level)
                array = layout.open_level(name, output.target, level).array.location
                intact = intact_blocks(array, stored_before(noted, key), reporter)
                found[key if level else ""] = sorted(
                    intact if level or "" not in found else intact & {*found[""]}
                )
    return found


def intact_blocks(location: str, before: Mapping[str, Any], reporter: Reporter) -> set[Box]:
    """The blocks of an array that are stored and can be decoded, checksums and all; see above."""
    volume = open_volume(location, key="output", channels="any")
    blocks, now = set(volume.stored_blocks()), census(volume)
    bad = {block for block in blocks if not _is_intact(volume, block, reporter)}
    is_other = not bad and any(now[key] != value for key, value in before.items())
    if is_other and now["chunks"] >= before["chunks"]:
        reporter.say(f"damaged: {location}: holds other chunks than were written")
        bad = blocks
    units = {
        triple(o // u for o, u in zip(b.origin, volume.storage_unit, strict=True)) for b in bad
    }
    files = [
        file.name
        for unit, file in volume.stored_files(units_touching(volume.box, volume.storage_unit))
        if unit in units
    ]
    place_at(location).delete(*files)
    return blocks - bad


def _is_intact(volume: Volume, block: Box, reporter: Reporter) -> bool:
    try:
        volume.read(block)
    except ChunkError as error:
        reporter.say(f"damaged: {error.subject}: {error.found}")
        return False
    return True


def drop_lost(layout: Layout, journal: Journal, targets: Iterable[str], reporter: Reporter) -> None:
    """Forget what the journal of an unfinished result has as done and is not stored so any more.

    What is left of it is deleted, since a damaged shard is read before it is replaced.
    """
    for note in journal.drop_lost():
        what = note.array or "the finest level"
        reporter.say(f"{layout.root}: {what} has lost chunks at {note.box.origin}; made again")
        for key in [note.array] if note.array else [level_key(name, 0) for name in targets]:
            (layout.root / key).prune_below()  # of folders in the place of chunks
            if not is_array(layout.root / key):
                continue
            for path in layout.array(key).files(note.box):
                path.unlink(missing_ok=True)


def step_outputs(root: Place) -> list[str]:
    """The outputs of post-processing in a result: without the predictions they are of nothing."""
    places = {name: root / name for name in sorted(root.names() - {FOLDER, OME, *METADATA})}
    return [name for name, place in places.items() if is_of_step(our_attributes(place))]


def _delete(root: Place, before: Manifest, noted: dict[str, Any]) -> None:
    """Delete the arrays of an earlier run, and nothing that is not ours."""
    journal = Journal(root)
    if noted:  # from here on nobody takes it for complete, whenever this is killed
        set_group_attributes(str(root), {KEY: {**noted, "complete": False}})
    journal.begin(before)  # again: the slabs that it has as done are about to go
    for name in before["targets"]:
        if Path(name).name == name:
            (root / name).remove()
    for name in step_outputs(root):
        discard_output(root / name)
    if OME not in before["targets"]:
        (root / OME).remove()
    if not noted or root.names() <= {FOLDER, *METADATA}:
        root.delete(*METADATA)
    journal.remove()
