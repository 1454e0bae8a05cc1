"""Who learns: one transformer fitted to the dataset, evaluated in the environments, shown in a report."""
