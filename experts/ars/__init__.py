"""Augmented random search: experts that are one linear map, without gradients."""
