"""Datasets in the formats of other tools: LeRobot and Minari."""
