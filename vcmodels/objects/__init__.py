"""Objects, which are the ids of an array: a table of them, their surfaces, their centre lines."""

from vcmodels.objects.meshes import MeshRequest, write_meshes
from vcmodels.objects.skeletons import SkeletonRequest, write_skeletons
from vcmodels.objects.table import ObjectTable, measure_objects
from vcmodels.objects.written import write_table

__all__ = [
    "MeshRequest",
    "ObjectTable",
    "SkeletonRequest",
    "measure_objects",
    "write_meshes",
    "write_skeletons",
    "write_table",
]
