"""Playing with the trained agent, and scores of what it played."""
