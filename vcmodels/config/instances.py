"""`kind: "instances"`: a target for labels that are ids, spelt out as heads and steps.

The network cannot predict ids. A recipe says what it predicts instead, all of it derived from the ids,
and which step makes ids of that again. What is spelt out here is what a user could write by hand; the
resolved task holds it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from vcmodels.config.messages import (
    Block,
    Fault,
    Schema,
    as_list,
    as_object,
    faults_of,
    shown,
    task_error,
)
from vcmodels.config.values import IgnoreLabel
from vcmodels.errors import FaultError
from vcmodels.section import Extent, PatchShape, Section

KIND = "instances"
MOST_REACH = 128
"""Of vectors to a centre, in voxels: what lies so far around a block is read with it."""
LEAST_VOXELS = 50
"""Of an object, where nothing else is said: what a network takes for one in noise has a few."""
OFFSETS = tuple(
    tuple(-reach if at == axis else 0 for at in range(3))
    for reach in (1, 3, 9)
    for axis in range(3)
)
"""Of affinities: to the next voxel, and far enough to bridge a gap in a boundary."""


class InstancesRecipe(Section):
    """A label of ids, and how objects are found."""

    kind: Literal["instances"]
    """Ids, 0 for the background: `recipe` says what the network predicts for them."""
    recipe: Literal["boundary", "boundary+distance", "centres+boundary", "affinities", "flow"] = (
        "boundary"
    )
    """What is predicted and how objects are made of it: `boundary`, a watershed of boundaries;
    `boundary+distance`, of the distance to the surface; `centres+boundary`, from centres as seeds;
    `affinities`, fragments that are joined; `flow`, voxels that point to one centre."""
    clip: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Of `boundary+distance`: distances up to this are told apart, about the radius of a large object,
    in the unit of the spacing."""
    max_extent: Extent | PatchShape | None = None
    """Of `centres+boundary` and `flow`: length of the longest object in voxels."""
    min_size: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Smaller objects are noise and left out, in voxels; when null 50, but of `affinities` none."""
    ignore_label: IgnoreLabel | None = None
    """Values of the label where nothing is known."""
    weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Factor of all of its losses."""

    @model_validator(mode="after")
    def _check_keys_fit(self) -> Self:
        for key, recipes, what in (
            (
                "clip",
                ("boundary+distance",),
                "the radius of a large object, in the unit of the spacing",
            ),
            ("max_extent", ("centres+boundary", "flow"), "the longest object, in voxels"),
        ):
            is_given, is_used = getattr(self, key) is not None, self.recipe in recipes
            if is_used and not is_given:
                raise FaultError(f'recipe "{self.recipe}" needs {key}', f"give {what}")
            if is_given and not is_used:
                raise FaultError(f'recipe "{self.recipe}" has no use for {key}', "leave it out")
        if self.recipe == "flow" and self._longest > MOST_REACH:
            found = f'recipe "flow" follows vectors of up to {MOST_REACH} voxels'
            raise FaultError(found, 'give a smaller max_extent, or recipe "affinities"')
        return self

    @property
    def _longest(self) -> int:
        """The longest side of `max_extent`, in voxels."""
        given = self.max_extent
        return max(given) if isinstance(given, tuple) else given or 1

    def heads(self, name: str) -> dict[str, Block]:
        """The targets that stand for it, as they could stand in a file, by name."""
        shared: Block = {"derive": name, "weight": self.weight}
        if self.ignore_label is not None:
            shared["ignore_label"] = self.ignore_label
        blocks: dict[str, Block] = {
            "mask": {"kind": "binary"},
            "boundary": {"kind": "boundary"},
            "distance": {
                "kind": "distance", "clip": self.clip, "surface_of": "instances", "positive": "inside",
            },
            "centres": {"kind": "centres", "max_extent": self.max_extent},
            "affinities": {"kind": "affinities", "offsets": [list(one) for one in OFFSETS]},
            "flow": {"kind": "vector", "vector_order": "zyx", "max_extent": self.max_extent},
        }  # fmt: skip
        return {f"{name}_{head}": {**blocks[head], **shared} for head in _HEADS[self.recipe]}

    def step(self, name: str) -> Block:
        """The step that makes ids of the heads."""
        sources, keys = _STEPS[self.recipe]
        made = {role: f"{name}_{head}" for role, head in sources.items()}
        found = {**keys, "output": name, "from": made}
        least = LEAST_VOXELS if self.recipe != "affinities" else None
        if (size := self.min_size or least) is not None:
            found["min_size"] = size
        if self.recipe == "flow":  # no voxel is farther from the centre of its object
            found["reach"] = self._longest
        return found


_HEADS: Mapping[str, tuple[str, ...]] = {
    "boundary": ("mask", "boundary"),
    "boundary+distance": ("boundary", "distance"),
    "centres+boundary": ("mask", "centres", "boundary"),
    "affinities": ("affinities", "boundary"),
    "flow": ("mask", "flow"),
}
_STEPS: Mapping[str, tuple[Mapping[str, str], Block]] = {
    "boundary": ({"boundary": "boundary", "mask": "mask"}, {"name": "watershed"}),
    "boundary+distance": ({"boundary": "distance"}, {"name": "watershed"}),
    "centres+boundary": (
        {"boundary": "boundary", "seeds": "centres", "mask": "mask"},
        {"name": "watershed"},
    ),
    "affinities": (
        {"affinities": "affinities", "boundary": "boundary"},
        {"name": "agglomerate", "by": "mean", "threshold": "tuned"},
    ),
    "flow": ({"flow": "flow", "mask": "mask"}, {"name": "follow"}),
}
"""What the step reads, by role, and its keys."""


class _Recipes(Section):
    targets: dict[str, InstancesRecipe]


def spell_out(document: Block, schema: Callable[[], Schema]) -> None:
    """Put heads and a step in the place of each target of kind `instances`.

    The step comes before those of the task, unless one of these has its output already.

    Args:
        document: a task as it is parsed, changed in place.
        schema: of the task, for messages.

    Raises:
        TaskError: a key is wrong, or a head has the name of another target.
    """
    config = as_object(document.get("dataset_config")) or {}
    targets = as_object(config.get("targets")) or {}
    blocks = {
        name: block
        for name, value in targets.items()
        if (block := as_object(value)) is not None and block.get("kind") == KIND
    }
    if not blocks:
        return
    recipes = _validated(blocks, schema)
    heads: dict[str, Any] = {}
    for name, block in targets.items():
        heads |= recipes[name].heads(name) if name in recipes else {name: block}
    _require_free(targets, recipes)
    config["targets"] = heads
    given = as_list(document.get("postprocess")) or []
    outputs = {block.get("output") for step in given if (block := as_object(step)) is not None}
    steps = [one.step(name) for name, one in recipes.items() if name not in outputs]
    if not isinstance(document.get("postprocess", []), list):
        return  # the validation says so
    document["postprocess"] = [*steps, *given]


def _validated(
    blocks: Mapping[str, Block], schema: Callable[[], Schema]
) -> dict[str, InstancesRecipe]:
    data = {"targets": dict(blocks)}
    try:
        return _Recipes.model_validate_json(json.dumps(data)).targets
    except ValidationError as error:
        faults = faults_of(error, data, schema())
        placed = [Fault(("dataset_config", *f.path), f.found, f.remedy, f.meant) for f in faults]
        raise task_error(placed) from error


def _require_free(targets: Block, recipes: Mapping[str, InstancesRecipe]) -> None:
    for name, recipe in recipes.items():
        for head in recipe.heads(name).keys() & targets.keys():
            found = f"is also what a head of {shown(name)} is called"
            path = ("dataset_config", "targets", head)
            raise task_error([Fault(path, found, "give this target another name")])
