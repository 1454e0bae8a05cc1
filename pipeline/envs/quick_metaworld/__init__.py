"""Meta-World's environments with the same numbers and less Python."""
