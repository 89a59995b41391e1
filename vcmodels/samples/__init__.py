"""From a patch to a batch on the training device: drawing order, reading, workers."""
