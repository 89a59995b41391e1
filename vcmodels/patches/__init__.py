"""Which patches of labelled volumes are worth training on: index, list, split, folds, sizes."""
