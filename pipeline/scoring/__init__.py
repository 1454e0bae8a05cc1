"""Measurements and normalised scores."""
