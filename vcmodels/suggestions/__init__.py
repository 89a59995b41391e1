"""What to label next: boxes of unlabelled voxels, how unsure a network is of each, and which to take."""
