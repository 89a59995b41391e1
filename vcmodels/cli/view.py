"""The command `view`."""

import threading
import webbrowser
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, load_one
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.viewers.scene import Scene
    from vcmodels.volumes import ChannelAxis


def view(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="TASK|RUN|OUTPUT",
            help="A task file, a run folder, a result of infer, or any array or OME-Zarr group.",
        ),
    ],
    set_: Overrides = None,
    volume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which volume of a task.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Of a result or an array: show this image under it."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Of an array: show this one over it, as ids."),
    ] = None,
    meshes: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of ids: their surfaces, from mesh --form precomputed."),
    ] = None,
    skeletons: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Their centre lines: skeleton --form precomputed."),
    ] = None,
    channel_axis: Annotated[
        str | None,
        typer.Option(metavar="first|last", help="Of arrays of 4 axes that do not say it."),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV or JSON of z,y,x[,text], in voxels, to show."),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What suggest wrote, to show its boxes.")
    ] = None,
    fold: FoldIndex = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at; others than yours reach 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
    napari: Annotated[
        bool, typer.Option("--napari", help="In napari, where it is installed, instead.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Look at volumes, labels, predictions and patches in neuroglancer, until Ctrl-C."""
    if napari:
        refuse_options("napari", meshes=meshes, skeletons=skeletons)
    _require(*(("napari", "napari[all]") if napari else ("neuroglancer", "vcmodels[view]")))
    from vcmodels.viewers.scene import read_points, with_boxes, with_meshes, with_skeletons

    console = Console()
    context.obj.begin()
    given = read_points(points) if points is not None else ()
    scene = replace(
        _scene(source, set_, volume, image, labels, channel_axis, fold, console), points=given
    )
    if meshes is not None:
        scene = with_meshes(scene, meshes)
    if skeletons is not None:
        scene = with_skeletons(scene, skeletons)
    if boxes is not None:
        scene = with_boxes(scene, boxes)
    if napari:
        from vcmodels.viewers.napari import show

        show(scene)
        return
    from vcmodels.viewers.neuroglancer import serving

    with serving(scene, host, port, console) as address:
        console.say(address)
        if browser:
            webbrowser.open(address)
        console.say("Ctrl-C ends it")
        wait()


def wait() -> None:
    """Wait for a signal, which raises here."""
    threading.Event().wait()


def _require(package: str, install: str) -> None:
    """Refuse to show anything without the package that does it.

    Raises:
        RefusedError: it is not installed.
    """
    if find_spec(package) is None:
        found = f"the package {package} is not installed"
        raise RefusedError("view", found, f'pip install "{install}"')


def _scene(
    source: str,
    set_: list[str] | None,
    volume: str | None,
    images: list[str] | None,
    labels: list[str] | None,
    channel_axis: str | None,
    fold: int | None,
    console: Console,
) -> "Scene":
    """What a source has to show.

    Raises:
        RefusedError: it is nothing that can be shown, or an option is for another source.
    """
    from vcmodels.viewers import contents
    from vcmodels.volumes import expand_location

    if is_task(source):
        refuse_options("a task", image=images, labels=labels, channel_axis=channel_axis)
        task = load_one(Path(source), set_, console, fold)
        return contents.scene_of_task(task, volume, console)
    refuse_options("an array or a result", set=set_, volume=volume, fold=fold)
    location = expand_location(source)
    if contents.is_result(location):
        refuse_options("a result", labels=labels, channel_axis=channel_axis)
        return contents.scene_of_result(location, images or (), console)
    axis = read_channel_axis(channel_axis)
    return contents.scene_of_arrays(location, images or (), labels or (), console, axis)


def read_channel_axis(text: str | None) -> "ChannelAxis | None":
    """Where the channels are.

    Raises:
        RefusedError: the text is neither of the two.
    """
    if text is None or text == "first" or text == "last":
        return text
    raise RefusedError("--channel-axis", f'found "{text}"', "give first or last")


def is_task(source: str) -> bool:
    """Whether a source is a task file or a run folder."""
    from vcmodels.runs.run import Run

    path = Path(source)
    return path.suffix in (".json", ".yaml", ".yml") or Run(path).task_file.is_file()


def refuse_options(what: str, **given: object) -> None:
    """Refuse options that are for another source.

    Raises:
        RefusedError: one of them is given.
    """
    for name, value in given.items():
        if value not in (None, [], ()):
            found = f"is not for {what}"
            raise RefusedError(f"--{name.replace('_', '-')}", found, "leave it out")
