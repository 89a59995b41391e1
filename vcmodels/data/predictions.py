"""Predictions of ours as labels: read by their own encoding, whatever the target's keys say.

What a target reads then is a plain float32 label: masks of 0 and 1, values of classes, vectors in its
own order; NaN, which does not count, where the network was not sure or has predicted nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.targets import KINDS
from vcmodels.targets.base import Target
from vcmodels.targets.stored import KEY
from vcmodels.volumes import Volume
from vcmodels.volumes.listing import Listing
from vcmodels.volumes.location import parent
from vcmodels.volumes.nodes import read_node


def prediction_notes(volume: Volume) -> dict[str, Any] | None:
    """What vcmodels wrote next to a prediction, on its array or the group of its levels; else None.

    Derived labels are none: they are stored as the labels that they are.

    Raises:
        VolumeError: the metadata of the group is damaged.
    """
    attributes: Mapping[str, Any] = volume.attributes
    location = volume.location.rstrip("/")
    if KEY not in attributes and location.rpartition("/")[2].isdecimal():
        above = parent(location)
        node = read_node(above, volume.key) if above else None
        attributes = node.attributes if node else {}
    notes = attributes.get(KEY)
    if not isinstance(notes, dict) or not isinstance(notes.get("encoding"), dict):
        return None
    return None if "derived_from" in notes else notes


def writer_of(encoding: Mapping[str, Any], volume: Volume) -> Target:
    """The target that stored predictions are of, by their `encoding`.

    Raises:
        VolumeError: it is none that this version knows.
    """
    try:
        kind = KINDS[encoding["kind"]]
        known = kind.model_fields
        block = {key: value for key, value in encoding.items() if key in known}
        if encoding.get("quantity") == "logit":
            block["activation"] = "none"
        if "label_values" in block:
            block["channels"] = len(block["label_values"])
        elif kind.model_fields["channels"].default == 1:
            block["channels"] = volume.channels
        if "output" in known and encoding.get("quantity") == "probability":
            block["output"] = "probabilities"
        if "output_range" in known and volume.dtype.kind != "f":
            low, most = encoding["offset"], int(np.iinfo(volume.dtype).max)
            block["output_range"] = [float(low), float(low + encoding["scale"] * most)]
        return kind.model_validate_json(json.dumps(block))
    except (KeyError, TypeError, ValidationError) as error:
        found = f"{volume.location} is a prediction of an encoding that is not known: {encoding}"
        raise VolumeError(volume.key, found, "predict again, or give a plain label") from error


@dataclass(frozen=True)
class PredictedLabel(Volume):
    """A prediction of ours, read as a label of a target."""

    source: Volume = field(kw_only=True)
    """The array as it is stored."""
    writer: Target = field(kw_only=True)
    """What it is a prediction of."""
    reader: Target = field(kw_only=True)
    """What it is a label of."""
    min_confidence: float | None = field(kw_only=True)
    """Voxels that are less sure do not count."""

    @classmethod
    def of(
        cls, volume: Volume, notes: Mapping[str, Any], reader: Target, least: float | None
    ) -> "PredictedLabel":
        """The prediction as a label of a target.

        Args:
            volume: as it is stored, with all its channels.
            notes: as from `prediction_notes`.
            reader: the target; its label keys hold for what is read.
            least: confidence from which on voxels count; all do when None.

        Raises:
            VolumeError: it is not whole, no label of such a target, or holds no confidence.
        """
        if notes.get("complete") is False:
            raise VolumeError(volume.key, f"{volume.location} is not finished", "run infer again")
        writer = writer_of(notes["encoding"], volume)
        if (reason := reader.unreadable(writer)) is not None:
            found = f"{volume.location} is a prediction of kind {writer.kind_name}: {reason}"
            raise VolumeError(volume.key, found, "change the target's keys, or give another label")
        if least is not None:
            _check_confidence(volume, writer, least)
        given = {f.name: getattr(volume, f.name) for f in fields(Volume)}
        changed = {
            "dtype": np.dtype(np.float32),
            "channels": reader.stored_channels or 1,
            "fill_value": 0.0,
        }
        return cls(
            **{**given, **changed},
            source=volume,
            writer=writer,
            reader=reader,
            min_confidence=least,
        )

    @property
    def read_rules(self) -> bytes:
        """What writer, reader and confidence make of the stored bytes."""
        keys = {"kind", "foreground", "label_encoding", "vector_order"}
        rules = [self.reader.model_dump(mode="json", include=keys), self.min_confidence]
        return json.dumps([self.writer.model_dump(mode="json"), rules]).encode()

    @cached_property
    def listing(self) -> Listing | None:
        """The stored chunks of the prediction, listed once."""
        return self.source.listing

    def fingerprint(self) -> str:
        """A sha256 that changes when the array does, or how it is read."""
        return hashlib.sha256(self.source.fingerprint().encode() + self.read_rules).hexdigest()

    def _read_inside(self, box: Box) -> np.ndarray[Any, Any]:
        predicted = self.writer.decode(self.source.read(box))
        plain = self.reader.plain_label(predicted, self.writer).astype(np.float32)
        if self.min_confidence is not None:
            unsure = self.writer.confidence(predicted) < self.min_confidence
            plain[np.broadcast_to(unsure, plain.shape)] = np.nan
        return np.ascontiguousarray(plain)


def _check_confidence(volume: Volume, writer: Target, least: float) -> None:
    """Refuse a `min_confidence` that predictions have nothing for, or that all of them have.

    Raises:
        VolumeError: it is one of these.
    """
    floor = writer.least_confidence
    if floor is None:
        found = f"{volume.location} holds no confidence for min_confidence"
        has_both = "output" in type(writer).model_fields
        hint = ', or predict with "output": "probabilities"' if has_both else ""
        raise VolumeError(volume.key, found, f"leave it out{hint}")
    if least <= floor:
        found = f"min_confidence {least:g} leaves out nothing: all is {floor:.2g} sure or more"
        raise VolumeError(volume.key, found, "raise it, or leave it out")
