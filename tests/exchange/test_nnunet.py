"""Result folders of nnU-Net against the same program written down once more (`nnunet_program`)."""

import copy
import json
import warnings

import nibabel
import numpy as np
import pytest
import torch

from tests.exchange import nnunet_program as program
from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.errors import CheckpointError
from vcmodels.exchange import load_network
from vcmodels.exchange.nnunet import convert
from vcmodels.inference import load_predictor
from vcmodels.models.fused import fused
from vcmodels.volumes import open_volume

PACKAGE = "dynamic_network_architectures.architectures.unet."
NAME = "3d_fullres"


def plans_of(*, dims=3, residual=False, transpose=(0, 1, 2), schemes=("ZScoreNormalization",), mask=False,
             patch=(16, 24, 8), spacing=(1.0, 1.0, 1.0)):  # fmt: skip
    """Plans as nnU-Net writes them, for a network of three levels."""
    one, down = [1] * dims, [2] * dims
    keys = {
        "n_stages": 3, "features_per_stage": [4, 6, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[1, *[3] * (dims - 1)], [3] * dims, [3] * dims],
        "strides": [one, [1, *[2] * (dims - 1)], down],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 2, 2] if residual else [2, 2, 2],
        "n_conv_per_stage_decoder": [1, 1] if residual else [2, 2],
        "conv_bias": True, "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    values = {"mean": 90.0, "std": 30.0, "percentile_00_5": 20.0, "percentile_99_5": 180.0}
    return {
        "dataset_name": "Dataset004_Tiny", "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(a) for a in range(3)],
        "foreground_intensity_properties_per_channel": {str(n): values for n in range(len(schemes))},
        "configurations": {
            NAME: {
                "preprocessor_name": "DefaultPreprocessor", "patch_size": list(patch),
                "spacing": list(spacing), "normalization_schemes": list(schemes),
                "use_mask_for_norm": [mask] * len(schemes),
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {
                    "is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None,
                },
                "architecture": {
                    "network_class_name": PACKAGE + kind, "arch_kwargs": keys, "_kw_requires_import": [],
                },
            }
        },
    }  # fmt: skip


CLASSES = {"background": 0, "anterior": 1, "posterior": 2}
REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def dataset_of(schemes, labels):
    found = {"channel_names": {str(n): f"c{n}" for n in range(len(schemes))}, "labels": labels}
    return found | ({"regions_class_order": [1, 2, 3]} if labels is REGIONS else {})


def folder_of(place, plans, *, labels=CLASSES, mirrored=(0, 1, 2), folds=1, **others):
    """A result folder, what is in it, and its networks."""
    torch.manual_seed(0)
    configuration = plans["configurations"][NAME]
    dataset = dataset_of(configuration["normalization_schemes"], labels)
    channels, heads = len(dataset["channel_names"]), 3
    networks = [program.Network(configuration, channels, heads).eval() for _ in range(folds)]
    program.write_folder(place, plans, dataset, networks, NAME, mirrored, **others)
    return place, dataset, networks


def image_of(shape, channels=1):
    """Noise that is smooth, with zeros around it."""
    draw = np.random.default_rng(1)
    z, y, x = np.meshgrid(*(np.linspace(0, 5, n) for n in shape), indexing="ij")
    found = np.stack([90 + 50 * np.sin(z + c) * np.cos(y) + 20 * x for c in range(channels)])
    found = (found + draw.normal(0, 8, found.shape)).astype(np.float32)
    found[:, :2], found[:, :, -3:] = 0, 0
    return found


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dims", [3, 2], ids=["3d", "2d"])
def test_the_network_of_a_fold_gives_the_logits_of_nnunet(tmp_path, dims, residual, transpose):
    patch = (16, 24, 8)[:dims]
    plans = plans_of(
        dims=dims, residual=residual, transpose=transpose, patch=patch, spacing=[1.0] * dims
    )
    folder, _, (network,) = folder_of(tmp_path, plans, mirrored=tuple(range(dims)))
    found = load_network(folder / "fold_0")
    image = torch.randn(1, 1, *patch)
    with torch.inference_mode():
        expected = network(image)
        whole = image if dims == 3 else image[:, :, None]
        back = plans["transpose_backward"]
        ours = whole.permute(0, 1, *(2 + a for a in back))
        logits = found.module(ours)["segmentation"][0]
        quick = fused(found.module)(ours.to(memory_format=torch.channels_last_3d))["segmentation"][
            0
        ]
    assert found.patch == tuple(ours.shape[2:])
    forward = plans["transpose_forward"]
    for one in (logits, quick):
        turned = one.permute(0, 1, *(2 + a for a in forward))
        turned = turned if dims == 3 else turned[:, :, 0]
        torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-5)


CASES = {
    "small": ({}, (13, 20, 7), (1.0, 1.0, 1.0)),
    "several patches": ({}, (26, 30, 12), (1.0, 1.0, 1.0)),
    "resampled": ({"spacing": (1.0, 1.0, 1.5), "residual": True}, (20, 30, 22), (1.2, 0.8, 1.0)),
    "thick": ({"spacing": (4.0, 1.0, 1.0)}, (18, 30, 16), (5.0, 0.9, 1.1)),
    "masked": ({"mask": True, "spacing": (1.5, 1.0, 1.0)}, (20, 30, 16), (1.0, 1.0, 1.0)),
    "two channels": ({"schemes": ("CTNormalization", "NoNormalization"), "transpose": (1, 2, 0),
                      "spacing": (1.0, 1.0, 0.8)}, (20, 30, 24), (1.0, 1.1, 0.9)),
    "slices": ({"dims": 2, "patch": (24, 16), "spacing": (1.0, 1.2)}, (6, 30, 24), (3.0, 1.0, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_prediction_is_that_of_nnunet(tmp_path, case):
    """Crop, normalisation, resampling, padding, window, mirrors, and all of it back."""
    options, shape, spacing = CASES[case]
    plans = plans_of(**options)
    mirrored = (0, 1) if options.get("dims") == 2 else (0, 1, 2)
    folds = 2 if case == "small" else 1
    folder, dataset, networks = folder_of(tmp_path, plans, mirrored=mirrored, folds=folds)
    image = image_of(shape, len(dataset["channel_names"]))
    expected = program.predict(image, spacing, plans, dataset, networks, NAME, mirrored)
    files = []
    for number, channel in enumerate(image):
        files.append(str(tmp_path / f"case_{number:04}.nii.gz"))
        affine = np.diag([*spacing[::-1], 1.0])
        nibabel.save(nibabel.Nifti1Image(channel.transpose(2, 1, 0), affine), files[-1])
    lines = [word for file in files for word in ("--input", file)]
    command = ["infer", str(folder), *lines, "-o", str(tmp_path / "out.zarr")]
    assert main([*command, "--set", 'inference_params.amp="off"', "--quiet"]) == 0
    found = open_volume(str(tmp_path / "out.zarr/segmentation"), key="test")
    labels = found.read(found.box)[0]
    assert len(np.unique(expected)) > 1
    assert (labels == expected).mean() > 0.9995, (labels != expected).sum()


def test_regions_are_a_mask_each(tmp_path):
    plans = plans_of()
    folder, dataset, networks = folder_of(tmp_path, plans, labels=REGIONS)
    image = image_of((16, 24, 8))
    found = load_predictor(folder)
    assert list(found.targets) == ["whole_tumor", "core", "enhancing"]
    with torch.inference_mode():
        logits = networks[0](torch.from_numpy(image)[None])[0]
        ours = found.networks[0].module(torch.from_numpy(image)[None])
    for number, name in enumerate(found.targets):
        torch.testing.assert_close(ours[name][0][0, 0], logits[number], atol=1e-5, rtol=1e-5)
    assert dataset["regions_class_order"]


def test_what_is_converted_once_is_an_ordinary_checkpoint(tmp_path):
    folder, _, _ = folder_of(tmp_path, plans_of(residual=True))
    assert main(["import", str(folder), str(tmp_path / "net.pth")]) == 0
    state = load_checkpoint(tmp_path / "net.pth").state
    before, after = load_network(folder / "fold_0"), load_network(tmp_path / "net.pth")
    for name, value in before.module.state_dict().items():
        assert torch.equal(after.module.state_dict()[name], value)
    assert after.task.to_json() == before.task.to_json()
    assert state["nnunet"]["labels"] == CLASSES


def test_a_folder_of_several_folds_is_an_ensemble_and_no_single_checkpoint(tmp_path):
    folder, _, _ = folder_of(tmp_path, plans_of(), folds=3)
    assert len(load_predictor(folder).networks) == 3
    assert len(load_predictor(folder / "fold_1").networks) == 1
    with pytest.raises(CheckpointError, match="holds 3 folds"):
        convert(folder, tmp_path / "net.pth")


def spoilt(plans, **changes):
    plans = copy.deepcopy(plans)
    plans["configurations"][NAME] |= changes
    return plans


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"previous_stage": "3d_lowres"}, "sees the labels of 3d_lowres"),
        ({"preprocessor_name": "Mine"}, "Mine prepares its data"),
        ({"normalization_schemes": ["Own"]}, "channel 0 has Own"),
        ({"resampling_fn_data": "resample_torch"}, "resample_torch with .* resamples"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, changes, message):
    folder, _, _ = folder_of(tmp_path, plans_of())
    (folder / "plans.json").write_text(json.dumps(spoilt(plans_of(), **changes)))
    with pytest.raises(CheckpointError, match=message):
        load_network(folder / "fold_0")


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    folder, _, _ = folder_of(tmp_path, plans_of(), logging=Evil())
    with pytest.raises(CheckpointError, match="could run code"):
        load_network(folder / "fold_0")
    assert "ran" not in capsys.readouterr().out


def test_another_trainer_is_noted(tmp_path):
    folder, _, _ = folder_of(tmp_path, plans_of(), trainer_name="nnUNetTrainerMine")
    with pytest.warns(UserWarning, match="its trainer nnUNetTrainerMine"):
        load_network(folder / "fold_0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_network(folder / "fold_0").task.model.name == "nnunet"
