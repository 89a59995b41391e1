"""Stored predictions of several networks read as one: their mean, their vote, or weighted.

A `FusedPrediction` is a volume like any other: what reads predictions box by box, such as evaluation,
holds no more than a box of each member. Values are averaged as overlapping patches are
(`Target.averageable`), so that the mean is that of an ensemble in `infer` but for the directions, of
which the stored ones have length 1 where an average of patches is shorter.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from vcmodels.data.labels import Label
from vcmodels.geometry.boxes import Box, cut_block
from vcmodels.targets import AnyTarget
from vcmodels.volumes import Volume
from vcmodels.volumes.listing import Listing

BLOCK_VOXELS = 1 << 21


@dataclass(frozen=True)
class Fusion:
    """How members are made one."""

    name: str
    """In tables."""
    weights: tuple[float, ...]
    """Of each member; 0 leaves it out, and is not read."""
    is_vote: bool = False
    """Of masks and classes: each member has one vote, of its own weight, for what it holds likeliest;
    what is written is the share of the votes."""
    by_spread: int = 0
    """How many views each member had, whose `Target.dispersion` weighs it voxel by voxel as
    `inference_params.ensemble` does by `variance`; 0: not so."""


@dataclass(frozen=True)
class FusedPrediction(Volume):
    """Predictions of one target by several networks, as one in float32."""

    members: tuple[Volume, ...] = field(kw_only=True)
    """As they are stored, of one target and one extent."""
    spreads: tuple[Volume, ...] = field(kw_only=True)
    """The stored uncertainty of each, for `by_spread`; else none."""
    target: AnyTarget = field(kw_only=True)
    """As which they are stored."""
    fusion: Fusion = field(kw_only=True)

    @classmethod
    def of(
        cls,
        members: Sequence[Volume],
        target: AnyTarget,
        fusion: Fusion,
        spreads: Sequence[Volume] = (),
    ) -> "FusedPrediction":
        """What members say together.

        Args:
            members: stored predictions, one or more.
            target: of all of them.
            fusion: how.
            spreads: their uncertainties, for `fusion.by_spread`.

        Raises:
            ValueError: their number is not that of the weights.
        """
        if len(members) != len(fusion.weights) or (
            fusion.by_spread and len(spreads) != len(members)
        ):
            raise ValueError(f"{len(members)} members for {len(fusion.weights)} weights")
        first = members[0]
        given = {f.name: getattr(first, f.name) for f in fields(Volume)}
        given["dtype"] = np.dtype(np.float32)
        return cls(
            **given,
            members=tuple(members),
            spreads=tuple(spreads),
            target=target,
            fusion=fusion,
        )

    @cached_property
    def listing(self) -> Listing | None:
        """That of the first: all were predicted in one region."""
        return self.members[0].listing

    def fingerprint(self) -> str:
        """A sha256 that changes when a member does, or how they are fused."""
        digest = hashlib.sha256(json.dumps(self._rules).encode())
        for member in (*self.members, *self.spreads):
            digest.update(member.fingerprint().encode())
        return digest.hexdigest()

    @property
    def read_rules(self) -> bytes:
        """What is made of the stored bytes."""
        return json.dumps([self._rules, [one.location for one in self.members]]).encode()

    @property
    def _rules(self) -> list[Any]:
        fusion = self.fusion
        target = self.target.model_dump(mode="json")
        return [list(fusion.weights), fusion.is_vote, fusion.by_spread, target]

    def _read_inside(self, box: Box) -> np.ndarray[Any, Any]:
        fused = self.target.unblend(self._fused(box))
        return self.target.encode(fused, np.dtype(np.float32))

    def _fused(self, box: Box) -> Tensor:
        """(A, Z, Y, X) float32: the weighted mean."""
        spread = self._spread_weights(box) if self.fusion.by_spread else None
        total, weights = torch.zeros(()), torch.zeros(())
        for number, weight in enumerate(self.fusion.weights):
            if weight == 0:
                continue
            factor = weight if spread is None else weight * spread[number]
            total = total + factor * self._said(self.members[number], box)
            weights = weights + factor
        return total / weights

    def _said(self, member: Volume, box: Box) -> Tensor:
        """(A, Z, Y, X): what a member adds."""
        values = blended(self.target, member, box)
        if not self.fusion.is_vote:
            return values
        if self.target.predicts == "classes":
            return torch.nn.functional.one_hot(values.argmax(0), len(values)).movedim(-1, 0).float()
        return (values > 0.5).float()

    def _spread_weights(self, box: Box) -> Tensor:
        """(M, 1, Z, Y, X): 1 / (1 + (views - 1) r), r being the dispersion over its mean."""
        # Floats are stored as they are, in no scale.
        found = [
            torch.from_numpy(one.read(box).astype(np.float32)).square() for one in self.spreads
        ]
        spread = torch.stack(found)
        typical = spread.mean(0)
        ratio = torch.where(typical > 0, spread / typical, 1.0)
        return 1 / (1 + (self.fusion.by_spread - 1) * ratio)


def blended(target: AnyTarget, stored: Volume, box: Box) -> Tensor:
    """(A, Z, Y, X) float32: what of a stored prediction may be averaged."""
    values = torch.from_numpy(np.ascontiguousarray(target.decode(stored.read(box))))
    return target.averageable(values)


def fitted_weights(
    parts: Sequence[tuple[Label, Sequence[Volume], Box]],
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[float, ...] | None:
    """Weights, 0 or more and 1 in sum, of the mixture that is nearest to labels; None after a stop.

    The least squared difference of averageable values over all valid voxels, as in stacked regression
    (Breiman 1996, "Stacked regressions", Machine Learning 24; not negative, as it advises). Only sums
    over voxels are kept. They are fitted to the very labels that they are then scored on: what they
    gain is an upper bound.

    Args:
        parts: labels of one target, the stored predictions of each member, and which box of them.
        should_stop: asked after each block.
    """
    count = len(parts[0][1])
    products, answers = np.zeros((count, count)), np.zeros(count)
    for label, members, box in parts:
        target = label.target
        for block in cut_block(box, (1, 1, 1), BLOCK_VOXELS):
            if should_stop():
                return None
            truth, valid = label.read(block)
            wanted = target.averageable(target.as_prediction(torch.from_numpy(truth)))
            counted = torch.from_numpy(valid).expand(len(wanted), *wanted.shape[1:])
            said = torch.stack([blended(target, one, block)[counted] for one in members]).double()
            products += (said @ said.T).numpy()
            answers += (said @ wanted[counted].double()).numpy()
    # |A w - y|^2 by its normal equations, as a least squares problem of the size of the members.
    values, vectors = np.linalg.eigh(products)
    kept = values > values.max(initial=0) * 1e-12
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    found, _ = nnls(root, (vectors[:, kept].T @ answers) / np.sqrt(values[kept]))
    if not found.sum():
        return (1 / count,) * count
    return tuple((found / found.sum()).tolist())
