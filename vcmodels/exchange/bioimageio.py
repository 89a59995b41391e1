"""A package of the BioImage Model Zoo: description (specification 0.5), ONNX, test tensors and card.

The description takes stored values to what the outputs mean: the normalisation is its preprocessing, the
activation its postprocessing, so that programs of the zoo need nothing of ours. Test tensors are made by
our own normalisation and network: `bioimageio test PACKAGE` runs the package against them.
"""

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.errors import CheckpointError, OutputError
from vcmodels.exchange import foreign_package, onnx
from vcmodels.exchange.base import INPUT, Errors, Exported, Values, library
from vcmodels.exchange.card import card
from vcmodels.exchange.foreign import unpacked
from vcmodels.exchange.forms import FORMS, mark_of
from vcmodels.exchange.graph import quiet
from vcmodels.exchange.record import KEY, REMEDY
from vcmodels.exchange.trust import Trust
from vcmodels.targets import AnyTarget

VERSION = "0.5.12"
DESCRIPTION, WEIGHTS, CARD = "rdf.yaml", "model.onnx", "README.md"
AXES = ("z", "y", "x")
LEAST_SPREAD = 1e-6
"""A standard deviation below is no spread, by the specification."""

MOST_SAID = 200
"""Characters of what the specification says is wrong."""

Step = dict[str, Any]


def write(model: Exported, folder: Path) -> Errors:
    """Write the package into a folder, run its weights, and check it against the specification.

    Raises:
        RefusedError: a library is missing.
        OutputError: the specification cannot say what the network needs, or the package fails.
    """
    spec = library("bioimageio.spec", "--to bioimageio")
    _require_licence(model.licence)
    model.require_plain_inputs()
    before = preprocessing(model)
    errors = onnx.write(model, folder / WEIGHTS)
    (folder / CARD).write_text(card(model, errors, "PACKAGE"), encoding="utf-8")
    raw = stored_image(model)
    normalized = np.stack([_per_patch(model).apply(one) for one in raw])
    logits = model.logits(torch.from_numpy(normalized))
    np.save(folder / f"{INPUT}.npy", raw)
    for name, values in meant(model, logits).items():
        np.save(folder / f"{tensor_id(model, name)}.npy", values)
    text = yaml.safe_dump(description(model, before), sort_keys=False)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    _validate(spec, folder)
    return errors


def load(path: Path, trust: Trust) -> TrainedNetwork:
    """The network of a package, a folder or a .zip; of one of ours, run by onnxruntime.

    Args:
        path: of the package.
        trust: whether code in a package of others may run.

    Raises:
        CheckpointError: it is damaged, or needs what we do not have.
        RefusedError: a library is missing.
    """
    mark = mark_of(path, FORMS["bioimageio"]) or DESCRIPTION
    if not _is_ours(path, mark):
        return foreign_package.load(path, mark, trust)
    if path.is_dir():
        return onnx.load(path / WEIGHTS)
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(WEIGHTS)
            if entry.file_size > 4 * path.stat().st_size:
                raise CheckpointError(str(path), f"{WEIGHTS} is packed too well", REMEDY)
            data = archive.read(entry)
    except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError, RuntimeError) as error:
        found = f"is no package with a {WEIGHTS} of vcmodels, or damaged"
        raise CheckpointError(str(path), found, REMEDY) from error
    return onnx.load_bytes(data, path)


def _is_ours(path: Path, mark: str) -> bool:
    """Whether a package has our record in its description."""
    with unpacked(path, mark) as folder:
        text = (folder / mark).read_bytes()
    return re.search(rb"^  vcmodels:\s*$", text, re.MULTILINE) is not None


def _validate(spec: Any, folder: Path) -> None:  # noqa: ANN401 - a module
    """Refuse a package that is not as the specification says.

    Raises:
        OutputError: with the first thing that is wrong.
    """
    library("loguru", "--to bioimageio").logger.disable("bioimageio")
    with quiet():
        found = spec.load_description(folder / DESCRIPTION).validation_summary
    if found.status == "failed":
        first = next(f"{one.loc}: {one.msg}".splitlines()[0][:MOST_SAID] for one in found.errors)
        remedy = "nothing was written; export it as onnx"
        raise OutputError("--to bioimageio", f"the specification refuses it ({first})", remedy)


def _require_licence(licence: str | None) -> None:
    """Refuse a licence that the specification does not know.

    Raises:
        OutputError: it is not by its name at SPDX.
    """
    generic = library("bioimageio.spec.generic.v0_3", "--to bioimageio")
    try:
        if licence is not None:
            generic.LicenseId(licence)
    except ValueError as error:
        found = f'"{licence}" is no name of spdx.org/licenses, which a package needs'
        raise OutputError("--license", found, "give one as CC-BY-4.0, or leave it out") from error


def description(model: Exported, before: Sequence[Step]) -> dict[str, Any]:
    """What `rdf.yaml` says."""
    network, use = model.network, model.record["use"]
    name = re.sub(r"[^\w+\- ()]", "_", network.task.tr_params.model_name, flags=re.ASCII)
    return {
        "type": "model",
        "format_version": VERSION,
        "name": name if len(name) >= 5 else f"vcmodels {name}",
        "description": f"Predicts {', '.join(model.names)} in volumes; a network of vcmodels.",
        "documentation": {"source": CARD},
        **({"license": model.licence} if model.licence else {}),
        "tags": ["3d", "vcmodels", "onnx"],
        "inputs": [
            {
                "id": INPUT,
                "axes": _axes(model, network.in_channels),
                "data": {"type": "float32"},
                "test_tensor": {"source": f"{INPUT}.npy"},
                "preprocessing": [*before],
            }
        ],
        "outputs": [
            {
                "id": tensor_id(model, name),
                "description": _meaning(target)[:128],
                "axes": _axes(model, target.channels),
                "data": {"type": "float32"},
                "test_tensor": {"source": f"{tensor_id(model, name)}.npy"},
                "postprocessing": [*postprocessing(model, name)],
            }
            for name, target in network.targets.items()
        ],
        "weights": {"onnx": {"source": WEIGHTS, "opset_version": onnx.OPSET}},
        "config": {KEY: use},
    }


def tensor_id(model: Exported, name: str) -> str:
    """A target as the specification wants names: lower case, at most 32 characters, no two alike."""
    ids = [re.sub(r"\W", "_", one.lower(), flags=re.ASCII)[:28] for one in model.names]
    number = model.names.index(name)
    is_plain = ids.count(ids[number]) == 1 and re.fullmatch(r"[a-z]\w*", ids[number])
    return ids[number] if is_plain and ids[number] != INPUT else f"t{number}_{ids[number]}"


def _axes(model: Exported, channels: int) -> list[dict[str, Any]]:
    network = model.network
    unit = {"unit": network.unit} if network.unit else {}
    space = [
        {"type": "space", "id": axis, "size": size, "scale": scale, **unit}
        for axis, size, scale in zip(AXES, network.patch, network.spacing, strict=True)
    ]
    names = [f"channel{number}" for number in range(channels)]
    return [{"type": "batch"}, {"type": "channel", "channel_names": names}, *space]


def _meaning(target: AnyTarget) -> str:
    """What an output is once it is postprocessed."""
    if target.activation in ("sigmoid", "softmax"):
        return f"{target.kind_name}: probability"
    after = f"; take its {target.activation}" if target.activation != "none" else ""
    order = ", components (z, y, x)" if target.glyph else ""
    return f"{target.kind_name}: as the network gives it{order}{after}"


def preprocessing(model: Exported) -> list[Step]:
    """The normalisation, in the steps of the specification.

    Raises:
        OutputError: it has none that do the same.
    """
    way = model.network.normalization
    if way.rule is not None:
        raise _unsayable(model, "measures values as the package that it is from")
    if way.scheme == "none":
        return []
    if way.per != "global":
        return _measured(model)
    if way.scheme in ("zscore", "ct"):
        is_ct = way.scheme == "ct"
        means = [one.clipped_mean if is_ct else one.mean for one in way.channels]
        spreads = [one.clipped_sd if is_ct else one.sd for one in way.channels]
        clip = [*_clip(model)] if is_ct else []
        return [
            *clip,
            _step(
                "fixed_zero_mean_unit_variance",
                axis="channel",
                mean=means,
                std=_kept(model, spreads),
            ),
        ]
    is_range = way.scheme == "minmax"
    lows = [one.minimum if is_range else one.low for one in way.channels]
    highs = [one.maximum if is_range else one.high for one in way.channels]
    spreads = _kept(model, [high - low for low, high in zip(lows, highs, strict=True)])
    scale = _step(
        "scale_linear", axis="channel",
        gain=[1 / spread for spread in spreads],
        offset=[-low / spread for low, spread in zip(lows, spreads, strict=True)],
    )  # fmt: skip
    return [scale] if is_range else [scale, _step("clip", min=0.0, max=1.0)]


def _measured(model: Exported) -> list[Step]:
    """The steps that measure the image themselves: of a whole one, a program of the zoo does so first."""
    way = model.network.normalization
    axes = [*(() if way.per_channel else ("channel",)), *AXES]
    low, high = way.percentiles
    if way.scheme == "ct":  # programs of the zoo measure before the first step, clipped or not
        raise _unsayable(model, "measures each volume after clipping it")
    scale = {
        "zscore": [_step("zero_mean_unit_variance", axes=axes)],
        "minmax": [_step("scale_range", axes=axes)],
        "percentile": [
            _step("scale_range", min_percentile=low, max_percentile=high, axes=axes),
            _step("clip", min=0.0, max=1.0),
        ],
    }
    return scale[way.scheme]


def _clip(model: Exported) -> Iterator[Step]:
    limits = {(one.low, one.high) for one in model.network.normalization.channels}
    if len(limits) > 1:
        raise _unsayable(model, "clips each channel at values of its own")
    low, high = limits.pop()
    yield _step("clip", min=low, max=high)


def _kept(model: Exported, spreads: Sequence[float]) -> list[float]:
    """1 for the spread of a constant channel, which is not divided."""
    channels = model.network.normalization.channels
    pairs = zip(spreads, channels, strict=True)
    return [s if s >= LEAST_SPREAD and not one.is_constant else 1.0 for s, one in pairs]


def _unsayable(model: Exported, found: str) -> OutputError:
    remedy = "a description of the zoo cannot say that: export it as onnx"
    return OutputError(str(model.checkpoint.path), found, remedy)


def postprocessing(model: Exported, name: str) -> list[Step]:
    """Temperature and activation of a target, as far as the specification has them."""
    target, temperature = model.network.targets[name], model.network.temperatures.get(name, 1.0)
    cool = [] if temperature == 1 else [_step("scale_linear", gain=1 / temperature)]
    if target.activation == "softmax":
        return [*cool, _step("softmax", axis="channel")]
    return [*cool, {"id": "sigmoid"}] if target.activation == "sigmoid" else cool


def meant(model: Exported, logits: Values) -> Values:
    """What the outputs are after `postprocessing`, computed by torch."""
    found: Values = {}
    for name, values in logits.items():
        cooled = torch.from_numpy(values) / model.network.temperatures.get(name, 1.0)
        activation = model.network.targets[name].activation
        if activation == "softmax":
            cooled = cooled.softmax(1)
        found[name] = (cooled.sigmoid() if activation == "sigmoid" else cooled).numpy()
    return found


def stored_image(model: Exported) -> np.ndarray[Any, Any]:
    """A made-up patch with the values of the training, (1, C, Z, Y, X) float32, as it is stored."""
    image = model.image().numpy()
    shown = model.network.normalization.channels or model.network.intensities
    for number, one in enumerate(shown if len(shown) == image.shape[1] else ()):
        image[:, number] = one.mean + one.sd * image[:, number]
    return image


def _per_patch(model: Exported) -> Any:  # noqa: ANN401 - a Normalization
    """The normalisation of a single patch, which is the whole image of the test."""
    way = model.network.normalization
    return replace(way, per="patch") if way.per == "volume" else way


def _step(name: str, **kwargs: object) -> Step:
    return {"id": name, "kwargs": kwargs}
