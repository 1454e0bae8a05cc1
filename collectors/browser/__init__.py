"""A local page that shows the episodes of a dataset and of an evaluation."""
