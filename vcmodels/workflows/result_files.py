"""The files that `inference_params.output_format` asks for, next to the Zarr of a result."""

from collections.abc import Iterator
from pathlib import Path, PurePath

from vcmodels.errors import TaskError
from vcmodels.formats import format_of
from vcmodels.formats.exporters import OUTPUT_ENDINGS, exporter_of
from vcmodels.inference import Request
from vcmodels.inference.job import output_specs
from vcmodels.inference.request import choose_targets
from vcmodels.reporting import Reporter
from vcmodels.results import our_attributes
from vcmodels.volumes import LocalPlace, Place
from vcmodels.workflows.export import PROBABILITY, Wanted, outgoing, require_file, write_file
from vcmodels.workflows.step_work import images_in

FORMAT = "inference_params.output_format"


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
        _require_series(request)
        _require_classes(request)
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
    ending, written = OUTPUT_ENDINGS[wanted], list[Path]()
    origin = request.inputs[0].origin
    like = origin.location if origin and wanted == "dicom-seg" else None
    for name, volume in images_in(request.output):
        path = result_file(request.output, name, ending)
        exporter = exporter_of(path, FORMAT)
        image, note = outgoing(volume, exporter, Wanted(like, overwrite=True))
        if exporter.is_for_classes and not image.is_label:
            reporter.say(f"note: {name} holds no classes: there is no {path.name}")
            continue
        exporter.check(image, FORMAT)
        if note:
            reporter.say(f"note: {path}: {note}")
        write_file(image, exporter, path, reporter)
        reporter.say(f"{name}: {path}")
        written.append(path)
    return written


def _names(request: Request) -> Iterator[str]:
    """Of all that the result will hold."""
    targets = choose_targets(request.targets, request.networks[0], request.params)
    yield from output_specs(targets, request.params)
    yield from (step.output for step in request.steps)


def _require_series(request: Request) -> None:
    origin = request.inputs[0].origin
    kind = format_of(origin.location) if origin else None
    if kind is None or kind.name != "dicom":
        found = f'is "dicom-seg", and {request.inputs[0].shown} is no DICOM series'
        raise TaskError(FORMAT, found, 'predict the series itself, or choose "nifti"')


def _require_classes(request: Request) -> None:
    """Refuse a request of which no output has segments: steps make masks and ids."""
    targets = choose_targets(request.targets, request.networks[0], request.params)
    encodings = [target.encoding(request.params.dtype) for target in targets.values()]
    quantities = [code.get("quantity") for code in encodings]
    is_one = [target.output_channels(request.params.dtype) is None for target in targets.values()]
    pairs = zip(quantities, is_one, strict=True)
    if request.steps or any(what in ("class", "probability") and one for what, one in pairs):
        return
    found = 'is "dicom-seg", and no target holds classes or a probability'
    raise TaskError(FORMAT, found, f"add a step that makes a mask (from {PROBABILITY} on)")
