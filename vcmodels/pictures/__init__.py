"""Pictures of slices: overlays of predictions, previews of augmentation, where patches lie."""
