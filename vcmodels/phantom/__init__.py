"""A made-up scroll scan with exact labels: the data of the demo, the tests and the benchmarks."""

from vcmodels.phantom.write import make_phantom, require_phantom, write_phantom

__all__ = ["make_phantom", "require_phantom", "write_phantom"]
