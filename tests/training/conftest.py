from tests.balls import folder

__all__ = ["folder"]
