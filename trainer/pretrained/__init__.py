"""Loads trained networks: this project's and the released JAT."""
