"""One training run: its steps, workers, logs and trackers."""
