"""Components of the report page and of model cards."""
