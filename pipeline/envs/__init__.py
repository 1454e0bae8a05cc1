"""The simulated world: tasks, environments, policies and the one environment loop."""
