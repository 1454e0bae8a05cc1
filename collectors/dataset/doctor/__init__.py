"""The quality of a dataset: what looks wrong, where, and what to do about it."""
