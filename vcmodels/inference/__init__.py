"""Blended prediction of volumes of any size: one pass, bounded memory, exactly resumable."""
