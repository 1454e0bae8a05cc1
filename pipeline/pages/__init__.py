"""Shared parts of the HTML pages of a run: template, style sheet, script and figure style."""
