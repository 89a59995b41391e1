"""Made-up scans with exact labels, a scroll or necks: data of demos, tests and benchmarks."""

from vcmodels.phantom.write import make_phantom, require_phantom, write_phantom

__all__ = ["make_phantom", "require_phantom", "write_phantom"]
