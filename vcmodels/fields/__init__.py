"""Fields computed from masks and instance ids: distances, normals, boundaries, affinities, centres.

Plain functions on tensors, on any device. Each is local: its value at a voxel follows from the
voxels within a stated reach, so that a patch with that margin gives the crop of the whole volume.
"""
