from tests.evaluation.conftest import store

__all__ = ["store"]
