"""Environments: tasks, simulators, policies and the only environment loop."""
