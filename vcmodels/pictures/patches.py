"""A picture of where the patches of a task lie, for choosing thresholds by looking."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vcmodels.patches.find import Candidates, PatchCriteria
from vcmodels.volumes.places import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_VOLUMES = 6
MOST_PLACES = 512
"""Along an axis of a panel: more are finer than its pixels, and a volume may have 10^5."""
_VIEWS = (("z", "y", "x"), ("y", "z", "x"), ("x", "z", "y"))


def draw_patches(candidates: Sequence[Candidates], criteria: PatchCriteria, path: Path) -> None:
    """Three projections of each volume's patch origins: with labels grey, qualifying coloured.

    The colour of a place says how many patches qualify along the line of sight.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: takes half a second
    from matplotlib.figure import Figure

    shown = candidates[:MOST_VOLUMES]
    figure = Figure(figsize=(12, 3.6 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    for part, one in zip(figure.subfigures(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        chosen = one.chosen(criteria)
        part.suptitle(f"{one.volume.name}: {len(chosen)} patches (grey: labels, but too few)")
        for axis, panel in enumerate(part.subplots(1, 3)):
            _draw_view(panel, one, chosen, axis)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, buffer.getvalue())


def _draw_view(panel: "Axes", one: Candidates, chosen: np.ndarray, axis: int) -> None:
    """One projection along an axis."""
    from matplotlib.ticker import MaxNLocator

    _, down, across = _VIEWS[axis]
    kept = [a for a in range(3) if a != axis]
    rows, columns = ((_thinned(one.grid.origins[a]), one.grid.patch[a]) for a in kept)
    region = [(one.volume.region.origin[a], one.volume.region.end[a]) for a in kept]
    labelled = _histogram(_labelled(one)[:, kept], rows[0], columns[0])
    qualifying = _histogram(chosen[:, kept], rows[0], columns[0])
    edges = [_edges(origins, patch) for origins, patch in (columns, rows)]
    grey = np.ma.masked_equal(np.minimum(labelled, 1), 0)
    panel.pcolormesh(*edges, grey, cmap="Greys", vmin=0, vmax=4)
    most = max(int(qualifying.max()), 1)
    mesh = panel.pcolormesh(
        *edges, np.ma.masked_equal(qualifying, 0), cmap="viridis", vmin=0, vmax=most
    )
    label = f"patches along {'zyx'[axis]}"
    panel.figure.colorbar(mesh, ax=panel, label=label, shrink=0.6, ticks=MaxNLocator(integer=True))
    panel.set_xlim(*region[1])
    panel.set_ylim(*region[0][::-1])
    panel.set_aspect("equal")
    panel.set_xlabel(f"{across} (voxels)")
    panel.set_ylabel(f"{down} (voxels)")


def _labelled(one: Candidates) -> np.ndarray:
    """Origins (n, 3) of the candidates that hold labels."""
    if one.density is None:
        return np.zeros((0, 3), np.int64)
    return one.grid.rows(one.density.places)


def _thinned(origins: np.ndarray) -> np.ndarray:
    """The first of every few neighbours, as many as a panel can show."""
    return origins[:: -(-len(origins) // MOST_PLACES)]


def _histogram(origins: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How many origins (n, 2) there are from each place of a grid to the next."""
    counts = np.zeros((len(rows), len(columns)), np.int64)
    places = tuple(
        np.searchsorted(axis, o, side="right") - 1
        for axis, o in zip((rows, columns), origins.T, strict=True)
    )
    np.add.at(counts, places, 1)
    return counts


def _edges(origins: np.ndarray, patch: int) -> np.ndarray:
    """Borders between the places of a grid, drawn around the centres of its patches."""
    centres = origins + patch / 2
    if len(centres) == 1:
        return np.array([centres[0] - patch / 2, centres[0] + patch / 2])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.array([2 * centres[0] - middle[0], *middle, 2 * centres[-1] - middle[-1]])
