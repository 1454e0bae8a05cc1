"""Filter, merge, split and undo: datasets made from datasets, and the old one stays."""
