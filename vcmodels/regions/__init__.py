"""The part of a volume that a task is about: found first, then trained on and predicted in."""
