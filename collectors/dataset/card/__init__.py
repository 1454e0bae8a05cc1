"""The dataset's card: tables, plots and previews."""
