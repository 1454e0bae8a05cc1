"""Texts and images with captions: sources, downloads and shards."""
