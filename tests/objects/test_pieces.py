"""Surfaces that are cut and welded, against those of the whole volume."""

from collections import Counter

import fastremap
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from zmesh import Mesher

from tests.objects.places import blocks, random_ids
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.objects.pieces import Triangles, around, cut_surfaces, placed, welded


def padded_read(ids, box):
    """The voxels of a box, 0 outside of the volume."""
    wide = np.pad(ids, 16)
    return wide[tuple(slice(s.start + 16, s.stop + 16) for s in box.slices())].copy()


def surfaces(ids, block) -> dict[int, Triangles]:
    """The welded surface of each object, cut in blocks."""
    whole, pieces = Box((0, 0, 0), ids.shape), {}
    for box in blocks_of(whole, block):
        wide = around(box, whole)
        for number, piece in cut_surfaces(padded_read(ids, wide), wide.origin):
            pieces.setdefault(number, []).append(piece)
    return {number: welded(found) for number, found in pieces.items()}


def triangle_set(points, faces) -> Counter:
    """All triangles by the places of their corners, whichever comes first."""
    corners = points[faces].tolist()
    return Counter(min((a, b, c), (b, c, a), (c, a, b)) for a, b, c in
                   (tuple(map(tuple, one)) for one in corners))  # fmt: skip


def edge_counts(faces) -> tuple[set[int], bool]:
    """By how many triangles edges are shared; whether each is gone along both ways."""
    edges = Counter(map(tuple, np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
                        .tolist()))  # fmt: skip
    both = Counter(tuple(sorted(edge)) for edge in edges.elements())
    return set(both.values()), all(edges[b, a] == n for (a, b), n in edges.items())


def euler(vertices, faces) -> int:
    """V - E + F, of a surface in which each edge has two triangles."""
    return len(vertices) - 3 * len(faces) // 2 + len(faces)


def volume(points, faces) -> float:
    a, b, c = (points[faces[:, n]].astype(float) for n in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), block=blocks)
def test_welded_surfaces_are_closed_and_those_of_the_whole_volume(seed, block):
    ids = random_ids(seed, (7, 8, 9))
    found = surfaces(ids, block)
    numbers = fastremap.unique(ids[ids > 0]).tolist()
    assert sorted(found) == numbers
    mesher = Mesher((1, 1, 1))
    mesher.mesh(np.pad(ids, 1))
    for number, surface in found.items():
        assert edge_counts(surface.faces) == ({2}, True)
        assert len(np.unique(surface.vertices, axis=0)) == len(surface.vertices)
        one = mesher.get(number)
        assert triangle_set(surface.vertices, surface.faces) == triangle_set(
            (2 * one.vertices - 2).astype(int), one.faces
        )
        assert euler(surface.vertices, surface.faces) == euler(one.vertices, one.faces)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), block=blocks)
def test_no_block_shows_in_a_single_byte(seed, block):
    ids = random_ids(seed)
    whole, cut = surfaces(ids, (99, 99, 99)), surfaces(ids, block)
    for number, surface in whole.items():
        np.testing.assert_array_equal(surface.vertices, cut[number].vertices)
        np.testing.assert_array_equal(surface.faces, cut[number].faces)


def ball(radius=9.0, shape=(24, 26, 28)):
    z, y, x = np.indices(shape)
    return ((z - 11) ** 2 + (y - 12) ** 2 + (x - 13) ** 2 <= radius**2).astype(np.uint8)


@pytest.mark.parametrize("reduction", [1, 6])
def test_a_placed_surface_encloses_the_object_where_it_lies(reduction):
    ids, spacing, offset = ball(), (3.0, 1.0, 2.0), (-100.0, 7.0, 1e4)
    mesh = placed(surfaces(ids, (10, 11, 12))[1], spacing, offset, reduction)
    assert mesh.faces.max() == len(mesh.points) - 1
    # Positive: seen from outside, in x, y, z.
    assert volume(mesh.points, mesh.faces) == pytest.approx(ids.sum() * 6, rel=0.04)
    centre = (mesh.points.max(axis=0) + mesh.points.min(axis=0)) / 2
    np.testing.assert_allclose(centre, [1e4 + 13 * 2, 7 + 12, -100 + 11 * 3], atol=1.0)
    assert edge_counts(mesh.faces) == ({2}, True)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_simplified_surface_stays_closed_near_and_of_the_same_genus(seed):
    ids = random_ids(seed, (16, 18, 20))
    number, surface = max(surfaces(ids, (99, 99, 99)).items(), key=lambda one: len(one[1].faces))
    mesh = placed(surface, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 8)
    assert len(mesh.faces) < len(surface.faces)
    assert edge_counts(mesh.faces) == ({2}, True)
    assert euler(mesh.points, mesh.faces) == euler(surface.vertices, surface.faces), number
    far, _ = cKDTree(surface.vertices[:, ::-1] / 2).query(mesh.points)
    assert far.max() < 1


def test_ids_larger_than_32_bits_keep_their_value():
    ids = np.zeros((4, 5, 6), np.uint64)
    ids[1:3, 1:4, 2:5] = 2**63 + 5
    assert list(surfaces(ids, (3, 3, 3))) == [2**63 + 5]
