"""What is refused of every form: values that are none, and inputs that another program does not make."""

from dataclasses import replace

import numpy as np
import pytest

from vcmodels.config.slices import SliceStack
from vcmodels.errors import OutputError
from vcmodels.exchange import FORMS, Exported, write_model
from vcmodels.exchange.record import made_inputs
from vcmodels.prepare.section import Prepare

MADE = {
    "prepare": Prepare(spacing=(2.0, 1.0, 1.0)),
    "stack": SliceStack(axis="z", offsets=(-1, 0, 1)),
    "coordinates": True,
}


@pytest.mark.parametrize("broken", ["nan", "inf", "shape", "other"])
def test_a_file_that_gives_other_values_is_refused(every_kind, tmp_path, broken):
    model = Exported.of(every_kind)

    def run(image):
        """The logits, of which one value of the second target is wrong."""
        found = [values.copy() for values in model.logits(torch_of(image)).values()]
        if broken == "shape":
            found[1] = found[1][..., :-1]
        else:
            found[1].flat[3] = {"nan": np.nan, "inf": np.inf, "other": 9.0}[broken]
        return found

    with pytest.raises(OutputError, match=f"{model.names[1]} differs by .* from the network"):
        model.compare(tmp_path / "a.onnx", run)
    plain = model.compare(tmp_path / "a", lambda x: [*model.logits(torch_of(x)).values()])
    assert set(plain.values()) == {0.0}


def torch_of(image):
    import torch

    return torch.from_numpy(image)


@pytest.mark.parametrize("key", MADE)
@pytest.mark.parametrize("form", ["bioimageio", "monai_bundle"])
def test_a_package_is_refused_where_inputs_are_made(every_kind, tmp_path, form, key):
    model = Exported.of(every_kind)
    assert made_inputs(model.network) == {}
    task = model.network.task.with_values(dataset_config={key: MADE[key]})
    made = replace(model, network=replace(model.network, task=task))
    assert list(made_inputs(made.network)) == [key]
    with pytest.raises(OutputError, match=rf"made by dataset_config\.{key}, .*; export it as onnx"):
        write_model(made, FORMS[form], tmp_path / "package")
    assert not list(tmp_path.iterdir())
