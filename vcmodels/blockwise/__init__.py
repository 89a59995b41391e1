"""Work over the blocks of a volume: recorded as it is done, on threads or on a cluster."""
