"""Other projects' readers open what is written here, voxel for voxel, and theirs is read here."""

import json
import shutil
import subprocess
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from torch import nn

from tests.inference.conftest import Workplace
from vcmodels.inference import predict_request
from vcmodels.targets import MulticlassTarget, NormalsTarget, RegressionTarget
from vcmodels.volumes import Storage, create_array, open_volume, write_volume

REPOSITORY = Path(__file__).parents[2]
TARGETS = {
    "value": RegressionTarget(channels=1, output_range=[0.0, 1.0]),
    "organ": MulticlassTarget(channels=3, label_values=[0, 2, 7]),
    "normals": NormalsTarget(channels=3),
}
FORMATS = {
    "v2": {},
    "v3": {"output_zarr_format": 3},
    "sharded": {"output_zarr_format": 3, "output_shards": [8, 16, 16]},
}


class Heads(nn.Module):
    """The image itself for each target, in as many channels, the later ones turned about."""

    def forward(self, image, targets):
        turned = torch.cat([image[:, :1], 1 - image[:, :1], image[:, :1] * 0.5], 1)
        return {name: (turned[:, : TARGETS[name].channels],) for name in targets}


@pytest.fixture(scope="module", params=FORMATS)
def result(request, tmp_path_factory):
    """A result with an image, classes and vectors, two levels each, and chunks that are not stored."""
    values = np.random.default_rng(0).random((9, 17, 34), np.float32)
    work = Workplace(tmp_path_factory.mktemp("readers"), values, (8, 8, 8))
    work.network = Heads()
    task = work.task(
        output_type="uint8", pyramid=1, bbox=[[0, 9], [0, 17], [0, 24]], **FORMATS[request.param]
    )
    config = task.dataset_config.model_copy(update={"targets": TARGETS})
    predict_request(work.request(task.model_copy(update={"dataset_config": config})))
    return work.folder / "out" / "net.zarr"


def ours(place):
    volume = open_volume(str(place), key="x", channels="any")
    voxels = volume.read(volume.box)
    assert voxels.any()
    return voxels if volume.has_channel_axis else voxels[0]


def by_tensorstore(place):
    driver = "zarr3" if (place / "zarr.json").exists() else "zarr"
    kvstore = {"driver": "file", "path": str(place)}
    return tensorstore.open({"driver": driver, "kvstore": kvstore}).result().read().result()


def by_zarrs(place):
    pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
    with zarr.config.set(pipeline):
        return zarr.open_array(str(place), mode="r")[...]


def by_zarrita(place):
    """As a browser reads it; needs node, and `npm install zarrita` in the repository."""
    script = f"""
        import * as zarr from "zarrita";
        import {{ FileSystemStore }} from "@zarrita/storage";
        const array = await zarr.open(new FileSystemStore({json.dumps(str(place))}));
        const found = await zarr.get(array);
        console.log(JSON.stringify([found.shape, Array.from(found.data)]));
    """
    told = subprocess.run(
        [shutil.which("node") or "node", "--input-type=module", "-e", script],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    shape, values = json.loads(told.stdout)
    return np.array(values).reshape(shape)


def has_zarrita():
    return shutil.which("node") and (REPOSITORY / "node_modules" / "zarrita").exists()


READERS = [
    by_tensorstore,
    by_zarrs,
    pytest.param(by_zarrita, marks=pytest.mark.skipif(not has_zarrita(), reason="no zarrita")),
]


@pytest.mark.parametrize("read", READERS)
def test_other_readers_give_every_voxel_of_every_level(result, read):
    for target in TARGETS:
        for level in "01":
            place = result / target / level
            np.testing.assert_array_equal(read(place), ours(place))


def series(top):
    """The images of a group, as the specification says that readers find them."""
    attributes = [dict(zarr.open_group(str(g), mode="r").attrs) for g in (top, top / "OME")]
    top_says, list_says = (each.get("ome", each) for each in attributes)
    assert top_says["bioformats2raw.layout"] == 3
    return list_says["series"]


def test_ome_zarr_py_finds_the_images_from_the_top_and_shows_them(result):
    assert series(result) == list(TARGETS)
    for name in series(result):
        (node,) = Reader(parse_url(str(result / name)))()
        assert node.metadata["name"] == name
        for level, data in enumerate(node.data):
            np.testing.assert_array_equal(data.compute(), ours(result / name / str(level)))
        specs = {type(spec).__name__ for spec in node.specs}
        assert specs == {"Multiscales", "Label" if name == "organ" else "OMERO"}
        if name == "organ":
            assert set(node.metadata["color"]) == {0, 2, 7}


def test_the_list_in_xml_is_that_of_the_series_with_sizes(result):
    images = list(ElementTree.parse(result / "OME" / "METADATA.ome.xml").getroot())
    assert [image.get("ID") for image in images] == [f"Image:{name}" for name in TARGETS]
    for image in images:
        (pixels,) = image
        shape = zarr.open_array(str(result / image.get("Name") / "0"), mode="r").shape
        channels = shape[0] if len(shape) == 4 else 1
        sizes = [int(pixels.get(f"Size{axis}")) for axis in "TCZYX"]
        assert sizes == [1, channels, *shape[-3:]]
        assert pixels.get("Type") == "uint8"
        tags = [one.tag.partition("}")[2] for one in pixels]
        assert tags == ["Channel"] * channels + ["MetadataOnly"]


def test_napari_shows_all_images_from_the_top(result):
    reader = pytest.importorskip("napari_ome_zarr").napari_get_reader(str(result))
    layers = reader(str(result))
    assert [kind for _, _, kind in layers] == ["image", "labels", "image"]
    for name, (levels, _, _) in zip(TARGETS, layers, strict=True):
        for level, data in enumerate(levels):
            np.testing.assert_array_equal(data.compute(), ours(result / name / str(level)))


PLAIN = {
    "v2": (Storage(2), "<i2"), "v2 floats": (Storage(2), "<f4"), "v3": (Storage(3), "<u2"),
    "sharded": (Storage(3, shards=(6, 6, 6)), "<i4"), "bool": (Storage(2), "bool"),
}  # fmt: skip


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("storage", "dtype"), PLAIN.values(), ids=PLAIN)
def test_other_readers_open_plain_arrays_and_whole_volumes(tmp_path, read, storage, dtype):
    values = (np.random.default_rng(0).normal(size=(7, 8, 9)) * 99).astype(dtype)
    array = create_array(
        str(tmp_path), "a", shape=values.shape, chunks=(2, 3, 3), dtype=dtype, storage=storage
    )
    array.write(open_volume(array.location).box, values[None])
    volume = write_volume(str(tmp_path / "v.zarr"), values, chunks=(2, 3, 3), storage=storage)
    for place in (tmp_path / "a", volume / "0"):
        np.testing.assert_array_equal(read(place), values)


@pytest.mark.parametrize("read", [by_tensorstore, by_zarrs, ours])
def test_a_flipped_byte_is_noticed_by_every_reader(result, tmp_path, read):
    place = shutil.copytree(result / "value" / "0", tmp_path / "value")
    chunk = next(p for p in sorted(place.rglob("[0-9]")) if p.is_file() and p.stat().st_size > 99)
    damaged = bytearray(chunk.read_bytes())
    damaged[60] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(Exception, match=r"(?i)checksum|corrupt|decompress|cannot be read"):
        read(place)


VALUES = np.random.default_rng(1).integers(0, 999, (7, 8, 9)).astype(np.uint16)


def written_by_tensorstore(folder, driver):
    zstd = {"id": "zstd", "level": 1}
    metadata = {
        "zarr": {"shape": VALUES.shape, "chunks": [2, 3, 4], "dtype": "<u2", "compressor": zstd},
        "zarr3": {
            "shape": VALUES.shape,
            "data_type": "uint16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 6, 8]}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [2, 3, 4],
                        "codecs": [
                            {"name": "bytes", "configuration": {"endian": "big"}},
                            {"name": "gzip", "configuration": {"level": 2}},
                        ],
                        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
                        "index_location": "start",
                    },
                }
            ],
        },
    }[driver]
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(folder)}}
    store = tensorstore.open({**spec, "metadata": metadata, "create": True}).result()
    store.write(VALUES).result()
    return folder


def written_by_zarrs(folder):
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        array = zarr.create_array(
            str(folder), shape=VALUES.shape, chunks=(2, 3, 4), shards=(4, 6, 8), dtype="u2"
        )
        array[...] = VALUES
    return folder


def written_by_ome_zarr(folder, version):
    format_of = {2: FormatV04, 3: FormatV05}[version]()
    group = zarr.open_group(str(folder), mode="w", zarr_format=version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about arguments that it gives itself
        from ome_zarr.writer import write_image

        write_image(VALUES, group, axes="zyx", fmt=format_of)
    return folder


WRITERS = {
    "tensorstore v2": lambda folder: written_by_tensorstore(folder, "zarr"),
    "tensorstore v3": lambda folder: written_by_tensorstore(folder, "zarr3"),
    "zarrs": written_by_zarrs,
    "ome-zarr 0.4": lambda folder: written_by_ome_zarr(folder, 2),
    "ome-zarr 0.5": lambda folder: written_by_ome_zarr(folder, 3),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_other_writers_make_is_read_here(tmp_path, write):
    np.testing.assert_array_equal(ours(write(tmp_path / "theirs.zarr")), VALUES)
