"""What a run shows, and how far to trust it."""
