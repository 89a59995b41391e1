"""The page on what the project depends on: each package, its licence as installed, and what it is for.

`make docs` writes it, by `python -m tools.dependencies`.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
WHY = {
    "torch": "networks, training, inference",
    "zarr": "arrays on disks and in object stores",
    "numcodecs": "checksums and compression of chunks",
    "numpy": "arrays",
    "scipy": "distances, splines, filters, rotations",
    "scikit-image": "skeletons, marching squares, thresholds",
    "albumentations": "transforms of slices that users know",
    "tensorboard": "curves and pictures of a training",
    "dask": "work on a cluster",
    "matplotlib": "charts of patches and curves",
    "pydantic": "the task file: types, defaults, errors, schema",
    "typer": "the command line",
    "rich": "tables and progress in a terminal",
    "fsspec": "locations that are URLs",
    "PyYAML": "task files in YAML",
    "pillow": "pictures",
    "jinja2": "the report as a page",
    "aiohttp": "`http://` stores",
    "s3fs": "`s3://` stores",
    "connected-components-3d": "connected components of a block",
    "edt": "exact distances of ids",
    "fastremap": "ids renumbered in place",
    "mwatershed": "the mutex watershed of a graph",
    "waterz": "oracle of agglomeration by mean affinity",
    "zmesh": "surfaces of objects",
    "kimimaro": "centre lines of objects",
    "nibabel": "NIfTI",
    "isal": "gzip, nearly three times as fast as zlib",
    "pydicom": "DICOM",
    "highdicom": "DICOM SEG",
    "tifffile": "TIFF and OME-TIFF",
    "h5py": "HDF5",
    "SimpleITK": "NRRD and MetaImage",
    "tensorstore": "N5",
    "neuroglancer": "the viewer in a browser",
    "imageio-ffmpeg": "flights as MP4",
    "monai": "networks by name; oracle of losses, metrics and inference",
    "einops": "what MONAI's transformers need",
    "bioimageio.spec": "packages of the BioImage Model Zoo, checked",
    "onnx": "models as ONNX",
    "onnxruntime": "ONNX, run",
    "onnxscript": "torch's exporter of ONNX",
    "safetensors": "weights without code",
    "wandb": "curves on a server, for who asks for it",
    "ruff": "lint and format",
    "pyright": "types",
    "import-linter": "the layers",
    "pytest": "tests",
    "pytest-timeout": "a test that hangs, named",
    "pytest-xdist": "tests on all cores",
    "hypothesis": "properties over random inputs",
    "surface-distance": "oracle of surface distances",
    "gudhi": "oracle of Betti numbers",
    "ome-zarr-models": "oracle of OME-Zarr metadata",
    "ome-zarr": "oracle of OME-Zarr images",
    "zarrs": "oracle of chunks: another implementation of Zarr",
    "moto": "an S3 server for tests",
    "flask": "what moto needs",
    "flask-cors": "what moto needs",
}
"""By package."""
SILENT = {
    "wandb": "MIT", "bioimageio.spec": "MIT", "gudhi": "MIT, some modules GPL-3.0",
}  # fmt: skip
"""Licences that the metadata do not say, or that of a package which `make venv` leaves out."""


def groups() -> Iterator[tuple[str, list[str]]]:
    """What needs packages, and their names: the package itself, then each extra."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    for title, lines in {"": project["dependencies"], **extras}.items():
        names = [re.split(r"[\[<>=!; ]", line)[0] for line in lines]
        yield title, [name for name in names if name != "vcmodels"]


def licence(name: str) -> str:
    """As the installed package says: an expression, a classifier, or a short text."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return SILENT[name]
    classes = [one for one in found.get_all("Classifier") or [] if "OSI Approved" in one]
    text, said = (
        " ".join((found.get_all(key) or [""])[0].split())
        for key in ("License", "License-Expression")
    )
    said = said or next((one.split(" :: ")[-1] for one in classes), text)
    return said.removesuffix(" License") if said else SILENT[name]


def page() -> str:
    """The page, as Markdown."""
    lines = [
        "# Dependencies",
        "",
        "Made by `make docs` from `pyproject.toml` and what the installed packages say of themselves; a test holds it to",
        "that. vcmodels is under the [MIT licence](../LICENSE). Exact versions: `constraints.txt`.",
    ]
    for title, names in groups():
        extra = f'Extra `{title}`: `pip install "vcmodels[{title}]"`' if title else "Always"
        lines += ["", f"## {extra}", "", "| package | licence | for |", "| --- | --- | --- |"]
        lines += [f"| {name} | {licence(name)} | {WHY[name]} |" for name in names]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
