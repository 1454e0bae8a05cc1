"""Training: one transformer is fitted to the dataset, evaluated in the environments, and presented in a report."""
