"""Tasks: data with its own score."""
