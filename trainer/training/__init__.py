"""The training loop, its workers, logs and trackers."""
