"""Volumes, predictions and patches in interactive viewers."""
