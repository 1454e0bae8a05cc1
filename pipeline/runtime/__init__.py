"""What runs where: Ray, the worker pool, training groups, stages, status and metrics."""
