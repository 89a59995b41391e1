import json

import numpy as np
import pytest

from tests.symmetry.phantoms import blobs, find, texture, volume_of
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, IDENTITY, mirror, quarter_turn
from vcmodels.symmetry.findings import as_findings, in_words, stored_findings, write_findings
from vcmodels.targets import NormalsTarget


@pytest.fixture(scope="module")
def found():
    return find(blobs(lambda rng: (0.2, *rng.uniform(0.3, 0.7, 2))))


def test_findings_come_back_from_their_file(found, tmp_path):
    write_findings(tmp_path / "symmetry.json", found)
    assert stored_findings(tmp_path / "symmetry.json") == found
    image = texture((24, 24, 24))
    labels = {"n": np.ones((3, 24, 24, 24), np.float32)}
    signed = find([volume_of(0, image, labels)], {"n": NormalsTarget()}, (24, 24, 24))
    assert as_findings(json.loads(json.dumps(signed.to_dict()))) == signed
    assert signed.signs["n"].mean == pytest.approx([3**-0.5] * 3)


@pytest.mark.parametrize("change", [{"schema": 2}, {"verdicts": {}}, {"windows": "many"}])
def test_what_is_no_finding_of_this_version_is_none(found, change, tmp_path):
    assert as_findings(found.to_dict() | change) is None
    assert stored_findings(tmp_path / "symmetry.json") is None
    (tmp_path / "symmetry.json").write_text("{")
    assert stored_findings(tmp_path / "symmetry.json") is None


def test_each_symmetry_has_its_own_words():
    assert in_words(mirror(2)) == "mirror x"
    assert in_words(quarter_turn(0, 1)) == in_words(quarter_turn(1, 0)) == "quarter turn zy"
    others = [one for one in CUBE_SYMMETRIES if one.permutation == (0, 1, 2)]
    assert len({in_words(one) for one in others}) == 8


def test_what_is_refuted_is_named_plainest_first(found):
    assert found.mirrors == ("y", "x")
    assert found.refuted([IDENTITY, mirror(1), mirror(2)]) == []
    refuted = found.refuted(CUBE_SYMMETRIES)
    assert refuted[0] == mirror(0)
    assert len(refuted) == 48 - len(found.group)
    assert found.why_not(mirror(0)).startswith("mirror z: label mask: told apart in")
    assert found.summary.startswith("mirrors y, x; quarter turns yx")
    shown = [name for name, _ in found.shown()]
    assert shown[:4] == ["mirror z", "mirror y", "mirror x", "mirror z, y"]
    assert shown[-3:] == ["quarter turn zy", "quarter turn zx", "quarter turn yx"]
