"""A program of `torch.export` (.pt2): graph and weights for torch in Python and C++, without our code.

Loading such a program with torch unpickles parts of it, and evaluates expressions in others. So vcmodels
takes only the numbers of the weights and the record from the archive, and builds the network itself.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.errors import CheckpointError
from vcmodels.exchange.base import Errors, Exported, of_weights, outline_of, read_bytes
from vcmodels.exchange.graph import quiet, traced
from vcmodels.exchange.record import REMEDY

RECORD = "vcmodels.json"
PREFIX = "network."
"""Of the names of weights in the program, which is of `Logits`."""


def write(model: Exported, path: Path) -> Errors:
    """Write the program, and compare what it gives with the network.

    Raises:
        OutputError: the network cannot be traced, or the program gives other values.
    """
    program = traced(model)
    with path.open("wb") as file, quiet():
        torch.export.save(program, file, extra_files={RECORD: model.text})
    with path.open("rb") as file, quiet():  # which this process has just written
        loaded = torch.export.load(file).module()
    load(path)

    def run(image):  # noqa: ANN001, ANN202 - a `Run`
        with torch.inference_mode():
            return [one.numpy() for one in loaded(torch.from_numpy(image))]

    return model.compare(path, run)


def load(path: Path) -> TrainedNetwork:
    """The network of an archive; its graph is not read.

    Raises:
        CheckpointError: it is missing, damaged, or was not written by vcmodels.
    """
    data = read_bytes(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.file_size > len(data) for entry in archive.infolist()):
                raise CheckpointError(str(path), "is packed: torch packs nothing", REMEDY)
            record = archive.read(_only(archive, f"extra/{RECORD}"))
            weights = _weights(archive, outline_of(record, path))
    except (zipfile.BadZipFile, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        found = "is no program that vcmodels exported, or damaged"
        raise CheckpointError(str(path), found, REMEDY) from error
    return of_weights(record, weights, path, data)


def _only(archive: zipfile.ZipFile, ending: str) -> str:
    """The one entry whose name ends so, below the folder that holds all.

    Raises:
        LookupError: there is none, or several.
    """
    found = [name for name in archive.namelist() if name.endswith(f"/{ending}")]
    if len(found) != 1:
        raise LookupError(ending)
    return found[0]


def _weights(archive: zipfile.ZipFile, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of these names, shapes and types.

    Raises:
        LookupError, ValueError: one is not there, or of another size.
    """
    place = _only(archive, "data/weights/model_weights_config.json")
    entries: dict[str, Any] = json.loads(archive.read(place))["config"]
    folder = place.rpartition("/")[0]
    found = dict[str, Tensor]()
    for name, like in wanted.items():
        entry = entries[PREFIX + name]
        steps = [one["as_int"] for one in entry["tensor_meta"]["strides"]]
        values = torch.frombuffer(
            bytearray(archive.read(f"{folder}/{entry['path_name']}")), dtype=like.dtype
        )
        sizes = [one["as_int"] for one in entry["tensor_meta"]["sizes"]]
        if sizes != list(like.shape) or values.numel() != like.numel():
            raise ValueError(name)
        found[name] = values.as_strided(sizes, steps).contiguous()
    return found
