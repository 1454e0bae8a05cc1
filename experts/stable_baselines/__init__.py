"""Experts trained with or loaded from Stable-Baselines3 and sb3-contrib."""
