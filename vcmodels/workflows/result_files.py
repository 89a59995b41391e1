"""The files that `inference_params.output_format` asks for, next to the Zarr of a result."""

from collections.abc import Iterator
from pathlib import Path, PurePath

from vcmodels.errors import OutputError, TaskError
from vcmodels.formats import format_of
from vcmodels.formats.exporters import OUTPUT_ENDINGS, exporter_of
from vcmodels.inference import Request
from vcmodels.inference.job import output_specs
from vcmodels.inference.request import choose_targets
from vcmodels.reporting import Reporter
from vcmodels.results import is_complete, our_attributes
from vcmodels.volumes import LocalPlace, Place, open_volume
from vcmodels.workflows.export import ExportOptions, outgoing, require_file, write_file
from vcmodels.workflows.step_work import images_in

FORMAT, OPTION = "inference_params.output_format", "--output"


def result_file(root: Place, name: str, ending: str) -> Path:
    """The file of one output, `<folder>/<result>_<name>.nii.gz`.

    Args:
        root: the group of the result, which is local.
        name: of a target, or of what a step makes.
        ending: of the format.
    """
    assert isinstance(root, LocalPlace)
    return root.path.with_name(f"{root.path.name.removesuffix('.zarr')}_{name}{ending}")


def require_result_files(request: Request, *, overwrite: bool) -> None:
    """Refuse files that could not be written in the end, before anything is predicted.

    Args:
        request: what is to be predicted.
        overwrite: whether an earlier result is to go.

    Raises:
        TaskError: the result goes to a URL; or a SEG is wanted of what is no DICOM series, or of
            targets of which none is classes.
        OutputError: a package is missing, or files are there without a result.
    """
    wanted = request.params.output_format
    if wanted == "zarr":
        return
    ending = OUTPUT_ENDINGS[wanted]
    if not isinstance(request.output, LocalPlace):
        found = f'is "{wanted}", a file, and {request.output} is a URL'
        raise TaskError(FORMAT, found, 'set it to "zarr", and export the result')
    exporter_of(PurePath(f"x{ending}"), FORMAT)
    if wanted == "dicom-seg":
        _require_series(request, FORMAT)
        _require_classes(request, FORMAT)
    is_new = not our_attributes(request.output)
    for name in _names(request):
        require_file(
            result_file(request.output, name, ending), FORMAT, overwrite=overwrite or not is_new
        )


def export_result(request: Request, reporter: Reporter) -> list[Path]:
    """Write a file for each output of a result that is complete; earlier ones are replaced.

    Returns:
        The files; what a SEG cannot hold is left out, and said.

    Raises:
        OutputError: the format cannot hold an output.
    """
    wanted = request.params.output_format
    if wanted == "zarr":
        return []
    ending = OUTPUT_ENDINGS[wanted]
    files = {n: result_file(request.output, n, ending) for n, _ in images_in(request.output)}
    return [path for n, path in files.items() if _write_if_held(request, n, path, reporter)]


def require_output_file(request: Request, path: Path, *, overwrite: bool) -> None:
    """Refuse a file for the whole result, as `require_result_files` does.

    Raises:
        TaskError: as there, or the result has several outputs.
        OutputError: as there, or the ending is of no format that is written.
    """
    name = _main_output(request, path)
    if exporter_of(path, OPTION).is_for_classes:
        _require_series(request, OPTION)
        _require_classes(request, OPTION)
    require_file(path, OPTION, overwrite=overwrite or _is_file_of(request.output / name, path))


def _is_file_of(output: Place, path: Path) -> bool:
    """Whether a file may be that of an output: the output is complete, and was so before."""
    if not isinstance(output, LocalPlace) or not is_complete(our_attributes(output)):
        return False
    notes = [file.stat().st_mtime_ns for file in output.path.iterdir() if file.is_file()]
    return path.is_file() and path.stat().st_mtime_ns >= max(notes)


def export_output(request: Request, path: Path, reporter: Reporter, *, overwrite: bool) -> None:
    """Write a complete result to one file: what the last step makes, or its only target.

    Args:
        request: what was predicted.
        path: the file.
        reporter: told what is written.
        overwrite: replace a file that is there; it stays else.

    Raises:
        OutputError: the format cannot hold it, as a SEG of nothing.
    """
    name = _main_output(request, path)
    if path.exists() and not overwrite:
        reporter.say(f"{name}: {path} is there already, and stays")
    else:
        _write(request, name, path, reporter, OPTION)


def _main_output(request: Request, path: Path) -> str:
    if request.steps:
        return request.steps[-1].output
    names = [*_names(request)]
    if len(names) == 1:
        return names[0]
    found = f"{path.name} holds one output, and there are {', '.join(names)}"
    remedy = f"choose one with output_targets, or name a folder and set {FORMAT}"
    raise TaskError(OPTION, found, remedy)


def _write_if_held(request: Request, name: str, path: Path, reporter: Reporter) -> bool:
    """Write the file of one output; False if it holds no classes, or none at all, for a SEG."""
    try:
        _write(request, name, path, reporter, FORMAT)
    except OutputError as error:
        if not exporter_of(path, FORMAT).is_for_classes:
            raise
        path.unlink(missing_ok=True)  # of an earlier result
        reporter.say(f"note: there is no {path.name}: {error.found}")
        return False
    return True


def _write(request: Request, name: str, path: Path, reporter: Reporter, key: str) -> None:
    exporter, origin = exporter_of(path, key), request.inputs[0].origin
    like = origin.location if origin and exporter.is_for_classes else None
    volume = open_volume(str(request.output / name / "0"), key=key, channels="any")
    image, note = outgoing(volume, exporter, ExportOptions(like))
    exporter.check(image, key)
    if note:
        reporter.say(f"note: {path}: {note}")
    write_file(image, exporter, path, reporter)
    reporter.say(f"{name}: {path}")


def _names(request: Request) -> Iterator[str]:
    """Of all that the result will hold."""
    targets = choose_targets(request.targets, request.networks[0], request.params)
    yield from output_specs(targets, request.params)
    yield from (step.output for step in request.steps)


def _require_series(request: Request, key: str) -> None:
    origin = request.inputs[0].origin
    kind = format_of(origin.location) if origin else None
    if kind is None or kind.name != "dicom":
        found = f"a SEG lies on a DICOM series, and {request.inputs[0].shown} is none"
        raise TaskError(key, found, "predict the series itself, or write a NIfTI file")


def _require_classes(request: Request, key: str) -> None:
    """Refuse a request of which no output has segments: steps make masks and ids."""
    if request.steps:
        return
    dtype = request.params.dtype
    targets = choose_targets(request.targets, request.networks[0], request.params)
    for target in targets.values():
        quantity = target.encoding(dtype).get("quantity")
        if quantity in ("class", "probability") and target.output_channels(dtype) is None:
            return
    found = "a SEG holds classes, and no target has classes or a probability"
    raise TaskError(key, found, "add a step that makes a mask to postprocess")
