"""The symmetry of a data set, found in its training volumes, and what follows for augmentation."""
