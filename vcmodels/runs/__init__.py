"""What a run folder says of its run: read only from small files, without torch."""
