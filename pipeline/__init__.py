"""Code that all stages share: tasks, episodes, the rollout, shards, manifests and scores."""
