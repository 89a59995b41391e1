from tests.balls import folder
from tests.labelled import blobs, make_task, store

__all__ = ["blobs", "folder", "make_task", "store"]
