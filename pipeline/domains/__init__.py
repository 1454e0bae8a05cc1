"""One file per domain: its table of tasks and how its environments are made."""
