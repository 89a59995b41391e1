"""Pictures of what augmentation does to the images and labels of a task."""

from vcmodels.preview.write import write_preview

__all__ = ["write_preview"]
