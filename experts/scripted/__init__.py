"""Rules, the experts that are code: bots, scripted policies and the random policy."""
