"""Objects, which are the ids of an array: a table of them, and their surfaces as meshes."""

from vcmodels.objects.meshes import MeshRequest, write_meshes
from vcmodels.objects.table import ObjectTable, measure_objects
from vcmodels.objects.written import write_table

__all__ = ["MeshRequest", "ObjectTable", "measure_objects", "write_meshes", "write_table"]
