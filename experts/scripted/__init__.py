"""Experts that are programs: bots, scripts and the random policy."""
