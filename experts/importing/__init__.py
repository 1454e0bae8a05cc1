"""Experts that others trained: read from files, the Hub, or what JAT released."""
