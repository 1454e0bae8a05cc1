"""Episodes and documents on disk: schema, shards, manifests, rules, statistics."""
