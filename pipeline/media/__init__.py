"""Videos and films."""
