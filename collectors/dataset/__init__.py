"""From shards to a dataset: built, described, checked."""
