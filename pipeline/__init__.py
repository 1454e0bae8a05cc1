"""Words and files that every stage shares: tasks, episodes, the rollout, shards, manifests, scores."""
