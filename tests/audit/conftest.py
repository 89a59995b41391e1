from tests.labelled import make_task, store

__all__ = ["make_task", "store"]
