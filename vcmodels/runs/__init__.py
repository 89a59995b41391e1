"""What a run folder says of its run: read from small files alone, without torch."""
