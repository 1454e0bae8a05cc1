"""Experts trained with or loaded from Sample Factory."""
