from tests.labelled import blobs, make_task, store

__all__ = ["blobs", "make_task", "store"]
