"""Who gathers: experts' episodes into shards, shards into a dataset."""
