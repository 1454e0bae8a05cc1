"""Experts: a policy per task to imitate, and the random policy, the baseline of every score."""
