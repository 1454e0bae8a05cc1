"""What evaluations found, on every scale."""
