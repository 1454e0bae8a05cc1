"""Episodes and documents on disk: schema, shards, manifests, validation rules, statistics."""
