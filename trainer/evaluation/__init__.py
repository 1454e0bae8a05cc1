"""Evaluation: rollouts of the trained agent, and their scores."""
