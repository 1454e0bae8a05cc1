"""Runs work in processes: Ray, the worker pool, training groups, stages, status and metrics."""
