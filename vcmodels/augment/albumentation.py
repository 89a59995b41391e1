"""Transforms of the library albumentations, on the slices of an image.

The library (Buslaev et al. 2020, Information 11(2):125) has transforms for pictures. Those that
change values and no places apply to a volume slice by slice.
"""

import inspect
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator
from torch import Tensor

from vcmodels.augment.apply import value_range
from vcmodels.augment.base import Axis, IntensityAugmentation
from vcmodels.errors import FaultError, RunError
from vcmodels.geometry.symmetries import AXES
from vcmodels.section import Fraction

if TYPE_CHECKING:
    from albumentations import ImageOnlyTransform


class Albumentation(IntensityAugmentation):
    """Change slices by a transform of the library albumentations, named by its class.

    Each channel is a grey picture whose values are scaled to 0..1 by the lowest and the highest of
    the channel in the patch, and scaled back afterwards.
    """

    name: Literal["albumentations"] = "albumentations"
    p: Fraction = 0.1
    transform: str
    """A class of albumentations 2.0 that changes values alone, see
    [augmentation](augmentation.md)."""
    options: dict[str, JsonValue] = Field(default={})
    """Arguments of the class, by name; `p` is the key of this block."""
    axis: Axis = "z"
    """The axis that the slices are stacked along."""
    slices: Literal["alike", "each"] = "alike"
    """`alike`: one draw for all slices of a patch, noise and all; `each`: a draw for each slice."""

    @field_validator("transform")
    @classmethod
    def _is_known(cls, name: str) -> str:
        find_class(name)
        return name

    @field_validator("options")
    @classmethod
    def _works(cls, options: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        if "transform" in info.data:  # else that is the fault
            try_out(info.data["transform"], options)
        return options

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        # A transform holds the state of its draws: one for each call serves any number of threads.
        transform = build_transform(self.transform, self.options)
        low, span = value_range(image)
        scaled = image.sub(low).div_(span).cpu()
        stacks = scaled.movedim(1 + AXES.index(self.axis), 1).numpy()
        seeds = self._seeds(stacks.shape[1], rng)
        try:
            for stack in stacks:
                for picture, seed in zip(stack, seeds, strict=True):
                    picture[:] = transform_picture(transform, picture, seed)
        except ValueError as error:
            remedy = "take larger patches, another axis or another transform"
            raise RunError("augment", str(error), remedy) from error
        return scaled.to(image.device).mul_(span).add_(low)

    def _seeds(self, slices: int, rng: np.random.Generator) -> Sequence[int]:
        """The seed of each slice."""
        if self.slices == "alike":
            return [int(rng.integers(2**63))] * slices
        return rng.integers(2**63, size=slices).tolist()


_ANOTHER = "name another transform"


@cache
def library() -> ModuleType:
    """The package albumentations, imported at the first call, which takes 0.3 s of one core."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else the import asks a server for its version
    import albumentations
    import cv2

    # Else OpenCV starts a thread for each core in every worker process, for slices of 0.1 ms.
    cv2.setNumThreads(1)
    return albumentations


@cache
def transform_classes() -> Mapping[str, type[Any]]:
    """All transforms of the library, by name; its base classes and compositions are none."""
    bases = {"BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D"}
    members = inspect.getmembers(library(), inspect.isclass)
    return {
        name: member
        for name, member in members
        if issubclass(member, library().BasicTransform) and name not in bases
    }


def find_class(name: str) -> type[Any]:
    """The transform of this name.

    Raises:
        FaultError: there is none, it changes more than values, or it needs a second image.
    """
    found = transform_classes().get(name)
    if found is None:
        remedy = _suggested(name, transform_classes()) or "docs/augmentation.md lists them"
        raise FaultError(f'"{name}" is no transform of albumentations', remedy)
    if not issubclass(found, library().ImageOnlyTransform):
        remedy = "use flip, quarter_turn, affine, shear, elastic or blank_boxes"
        raise FaultError(f"{name} changes places or labels too, and cannot turn vectors", remedy)
    if "metadata_key" in inspect.signature(found).parameters:
        raise FaultError(f"{name} needs a second image or other data with each image", _ANOTHER)
    return found


def build_transform(name: str, options: Mapping[str, JsonValue]) -> "ImageOnlyTransform":
    """The transform of this name, which changes every picture that it is given."""
    kind: type[Any] = getattr(library(), name)
    return kind(**options, p=1.0)


def _suggested(word: str, choices: Iterable[str]) -> str:
    """What a misspelt word was probably meant to be, as a question; "" if nothing is near."""
    near = get_close_matches(word, list(choices), n=1)
    return f'did you mean "{near[0]}"?' if near else ""


def try_out(name: str, options: Mapping[str, JsonValue]) -> None:
    """Build a transform and change some grey slices by it.

    Raises:
        FaultError: it takes other arguments, or is of no use on grey float slices.
    """
    arguments = inspect.signature(find_class(name)).parameters.keys() - {"p"}
    _check_names(name, options, sorted(arguments))
    with warnings.catch_warnings():
        # The library warns, and then ignores what it was given.
        warnings.simplefilter("error", UserWarning)
        try:
            transform = build_transform(name, options)
        except (ValueError, TypeError, UserWarning) as error:
            raise FaultError(
                f"{name} refuses its options: {_reason(error)}", "correct them"
            ) from error
        fault = _fault(transform)
    if fault is not None:
        raise FaultError(fault, f"{_ANOTHER} or change its options")


def _check_names(name: str, options: Iterable[str], arguments: Sequence[str]) -> None:
    for option in options:
        if option == "p":
            raise FaultError('"p" is no option', 'give it next to "transform"')
        if option not in arguments:
            known = f"it takes {', '.join(arguments) or 'none'}"
            remedy = _suggested(option, arguments) or known
            raise FaultError(f'{name} has no argument "{option}"', remedy)


def _fault(transform: "ImageOnlyTransform") -> str | None:
    """Why a transform is of no use on grey float slices, None if it is of use."""
    name, grey = type(transform).__name__, _trial_picture()
    try:
        drawn = [transform_picture(transform, grey, seed) for seed in range(4)]
    except ValueError as error:
        if _changes_colours(transform):
            return f"{name} needs three colours, and each channel here is a grey picture"
        return str(error)
    for picture in drawn:
        if picture.shape != grey.shape or picture.dtype != grey.dtype:
            return f"{name} makes {picture.dtype} {picture.shape} of {grey.dtype} {grey.shape}"
        # Rounding aside; a NaN is not within.
        if not -1e-5 <= picture.min() <= picture.max() <= 1 + 1e-5:
            return f"{name} makes values from {picture.min():g} to {picture.max():g} of 0 to 1"
    if all(np.array_equal(picture, grey) for picture in drawn) and not _draws(transform):
        return f"{name} does nothing to a grey picture"
    return None


def transform_picture(
    transform: "ImageOnlyTransform", picture: np.ndarray, seed: int
) -> np.ndarray:
    """What a transform makes of a picture (H, W) float32 in 0..1.

    Raises:
        ValueError: the library raised anything.
    """
    transform.set_random_seed(seed)
    try:
        return transform(image=picture)["image"]
    except Exception as error:  # foreign code, with arguments that only it can judge
        size = " x ".join(map(str, picture.shape))
        name = type(transform).__name__
        raise ValueError(f"{name} fails on a picture of {size}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What the library said, on one line."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):  # its metaclass raises the text, of many lines, again
        first = cause.errors()[0]
        key = ".".join(map(str, first["loc"]))
        return f"{key}: {first['msg'].removeprefix('Value error, ')}"
    return str(error).partition("\n")[0] or type(error).__name__


def _trial_picture() -> np.ndarray:
    """A smooth grey picture (96, 112) float32 that spans 0 to 1."""
    y, x = np.linspace(0, 5, 96)[:, None], np.linspace(0, 7, 112)
    waves = np.sin(y + x) + np.cos(y * x / 4)
    return ((waves - waves.min()) / np.ptp(waves)).astype(np.float32)


def _changes_colours(transform: "ImageOnlyTransform") -> bool:
    """Whether it changes a picture of three colours, where a grey one failed."""
    grey = _trial_picture()
    colours = np.stack([grey, grey**2, 1 - grey], axis=-1)
    try:
        return not np.array_equal(transform_picture(transform, colours, 0), colours)
    except ValueError:
        return False


def _draws(transform: "ImageOnlyTransform") -> bool:
    """Whether a change takes random numbers."""

    def states() -> tuple[object, object]:
        return transform.random_generator.bit_generator.state, transform.py_random.getstate()

    transform.set_random_seed(0)
    before = states()
    transform(image=_trial_picture())
    return states() != before
