"""The formats that are written, by the endings of files: one file of this package each."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePath

from vcmodels.errors import OutputError
from vcmodels.formats.base import without_ending
from vcmodels.formats.outgoing import Exporter


@dataclass(frozen=True)
class Written:
    """A kind of files. What writes it is imported when a file is written: it may not be installed."""

    endings: tuple[str, ...]
    """In lower case, with their dot; the first is the usual one."""
    module: str
    exporter: str
    """The name of its class."""
    package: str | None = None
    """That it needs."""


WRITTEN = (
    Written((".nii.gz",), "nifti_out", "PackedNiftiExporter", "nibabel"),
    Written((".nii",), "nifti_out", "NiftiExporter", "nibabel"),
    Written((".ome.tif", ".ome.tiff"), "tiff_out", "OmeTiffExporter", "tifffile"),
    Written((".tif", ".tiff"), "tiff_out", "TiffExporter", "tifffile"),
    Written((".seg.dcm", ".dcm"), "seg_out", "SegExporter", "highdicom"),
    Written((".h5", ".hdf5", ".hdf"), "hdf5_out", "Hdf5Exporter", "h5py"),
    Written((".nrrd",), "raw_out", "NrrdExporter"),
    Written((".mha",), "raw_out", "MetaImageExporter"),
    Written((".npy",), "raw_out", "NumpyExporter"),
)
"""The first whose ending a name has writes it."""
OUTPUT_ENDINGS = {
    "nifti": ".nii.gz", "tiff": ".ome.tif", "dicom-seg": ".seg.dcm", "hdf5": ".h5",
}  # fmt: skip
"""Of the files that `output_format` means."""


def written_stem(name: str) -> str:
    """The name of a file that is exported to, without its ending; "" of what is no such name."""
    return without_ending(name, (ending for one in WRITTEN for ending in one.endings))


def exporter_of(path: PurePath, key: str) -> Exporter:
    """What writes a file of this name.

    Raises:
        OutputError: its ending is of no format that is written, or a package is missing.
    """
    for one in WRITTEN:
        if path.name.lower().endswith(one.endings):
            if one.package is not None and find_spec(one.package) is None:
                found = f"{path.name} needs the package {one.package}, which is not installed"
                raise OutputError(key, found, 'pip install "vcmodels[formats]"')
            module = import_module(f"vcmodels.formats.{one.module}")
            return getattr(module, one.exporter)()
    listed = ", ".join(one.endings[0] for one in WRITTEN)
    found = f"the ending of {path.name} is of no format that is written"
    raise OutputError(key, found, f"name a file that ends in one of {listed}")
