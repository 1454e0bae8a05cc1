"""Collection: experts' episodes to shards, and shards to a dataset."""
